"""Read by every Python process of a fleet before its own first line, since this folder is on its PYTHONPATH.

The product has no hooks for faults: here its named moments are given them, and for the negative controls one of its
guards is taken away.
"""

import os

if "CHAOS_FOLDER" in os.environ:
    import chaos_guards
    import chaos_moments

    chaos_guards.install()
    chaos_moments.install()
    chaos_guards.install_around_moments()
