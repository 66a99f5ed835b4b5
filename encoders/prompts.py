"""What is put before a text to tell the encoder what it is: a query, say, or a document that may answer one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from encoders.errors import EncoderError, UnsafeFolderError
from encoders.folder import PROMPTS, read_object

# Other names for one thing among published models, as in sentence-transformers' encode_document.
_ALIASES = {"document": ("document", "passage", "corpus")}


class UnknownPromptError(EncoderError):
    """The model has no prompt of this name."""


@dataclass(frozen=True)
class Prompts:
    """A model's prompts by name; `default` names the one for texts of which nothing is said."""

    texts: Mapping[str, str] = field(default_factory=dict)
    default: str | None = None

    @classmethod
    def of_folder(cls, folder: Path) -> Prompts:
        """As sentence-transformers keeps them. Raises UnsafeFolderError."""
        config = read_object(folder, PROMPTS)
        texts, default = config.get("prompts") or {}, config.get("default_prompt_name")
        if not isinstance(texts, dict) or not all(isinstance(text, str | None) for text in texts.values()):
            raise UnsafeFolderError(f"{PROMPTS} must hold an object of texts as 'prompts'.")
        if default is not None and default not in texts:
            raise UnsafeFolderError(f"{PROMPTS} has the default_prompt_name {default!r}, which is no prompt.")
        return cls({name: text for name, text in texts.items() if text}, default if texts.get(default) else None)

    def of(self, name: str | None) -> str:
        """What goes before a text. Without a name the default; nothing for a query or document without a prompt.

        Raises UnknownPromptError.
        """
        if name is None:
            return self.texts[self.default] if self.default else ""
        for alias in _ALIASES.get(name, (name,)):
            if alias in self.texts:
                return self.texts[alias]
        if name in ("query", "document"):
            return ""
        names = ", ".join(sorted({"query", "document", *self.texts}))
        raise UnknownPromptError(f"The model has no prompt {name!r}; there is: {names}.")

    def fingerprint(self, tokenizer: str) -> str:
        """A tokenizer's fingerprint with the prompts in it: together they decide the ids of a file's texts."""
        if not self.texts:
            return tokenizer
        decisive = json.dumps([tokenizer, dict(self.texts), self.default], sort_keys=True)
        return hashlib.sha256(decisive.encode()).hexdigest()
