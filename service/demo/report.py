"""What the demo shows at the end: numbers, examples, a verdict, and what to try next."""

from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from service.demo.docstrings import Pair
from service.demo.examples import Example, View
from service.demo.retrieval import Difference


def print_metrics(console: Console, differences: list[Difference]) -> None:
    """Before, after, difference and its interval, a metric a row."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    for heading in ("before", "after", "difference", "95 % interval"):
        table.add_column(heading, justify="right")
    for one in differences:
        style = "green" if one.is_better else "red" if one.high < 0 else "yellow"
        numbers = (f"{one.before:.3f}", f"{one.after:.3f}", Text(f"{one.gain:+.3f}", style=style))
        table.add_row(one.name, *numbers, f"{one.low:+.3f} … {one.high:+.3f}")
    console.print(table)


def print_example(console: Console, example: Example, pairs: list[Pair]) -> None:
    """A query and its nearest documents under both models, side by side."""
    console.print()
    console.print(Text.assemble("   ", (example.pair.anchor, "bold"), f"  ({example.change})"))
    console.print(Text(f"   {example.pair.positive}", style="green"), no_wrap=True, overflow="ellipsis")
    table = Table(box=None, expand=True, padding=(0, 0, 0, 3), pad_edge=True)
    for name, view in (("before", example.before), ("after", example.after)):
        table.add_column(f"{name}: place {view.place:g}", no_wrap=True, overflow="ellipsis", ratio=1)
    for row in zip(_cells(example.before, example, pairs), _cells(example.after, example, pairs), strict=True):
        table.add_row(*row)
    console.print(table)


def _cells(view: View, example: Example, pairs: list[Pair]) -> list[Text]:
    cells = []
    for near in view.neighbours:
        right = near.index == example.answer
        text = f"{'✓' if right else ' '} {near.score:.2f} {pairs[near.index].positive}"
        cells.append(Text(text, style="green" if right else ""))
    return cells


def print_similarity(console: Console, name: str, before: float, after: float, text: str) -> None:
    """The cosine of a query with a text, under both models."""
    words = Text(f"   {before:+.3f} → {after:+.3f}   {name}: {text}")
    console.print(words, no_wrap=True, overflow="ellipsis")


def print_verdict(console: Console, mrr: Difference) -> None:
    """The verdict in words: it hangs on whether the interval of the MRR difference holds zero."""
    if mrr.is_better:
        words, style = "The tuned model is better, on modules it never saw.", "bold green"
    elif mrr.high < 0:
        words, style = "The tuned model is worse. Try a lower learning rate.", "bold red"
    else:
        words, style = "No difference that could not be chance. Try more steps.", "bold yellow"
    console.print()
    console.print(Text(words, style=style))
    console.print(f"MRR {mrr.before:.3f} → {mrr.after:.3f}; the difference is {mrr.low:+.3f} … {mrr.high:+.3f}.")


@dataclass(frozen=True)
class Address:
    """Where a reader finds the server later on: its base URL, its key, and how to start it if it stops now."""

    base_url: str
    key: str = "<your API key>"
    start: str | None = None
    python: str = "python3"


def print_next_steps(console: Console, address: Address, model: str) -> None:
    """Something to paste."""
    console.print(Text("\nWhat next", style="bold"))
    if address.start is not None:
        console.print(Text(f"\nStart the server again, in a terminal of its own:\n\n{address.start}"), soft_wrap=True)
    words = _NEXT.format(base_url=address.base_url, model=model, key=address.key, python=address.python)
    console.print(Text(words), soft_wrap=True)


_NEXT = """
Tell clients where the server is:

export OPENAI_BASE_URL={base_url}
export OPENAI_API_KEY={key}

Embed texts of your own:

{python} - <<'EOF'
from openai import OpenAI

client = OpenAI()
answer = client.embeddings.create(
    model="{model}",
    input=["shutil copytree", "Recursively copy a directory tree."],
)
print([item.embedding[:4] for item in answer.data])
EOF

Ask how alike texts are:

curl -s $OPENAI_BASE_URL/similarity -H "Authorization: Bearer $OPENAI_API_KEY" \\
  -H "Content-Type: application/json" -d '{{
    "model": "{model}",
    "query": "walk a folder",
    "documents": ["Directory tree generator.", "Return the sine of x."]}}'

Teach it what alike means to you: a JSONL file with {{"anchor": "…", "positive": "…"}} a line.

{python} - <<'EOF'
from openai import OpenAI

client = OpenAI()
file = client.files.create(file=open("pairs.jsonl", "rb"), purpose="fine-tune")
client.files.wait_for_processing(file.id, poll_interval=0.5)
job = client.fine_tuning.jobs.create(
    model="sentence-transformers/all-MiniLM-L6-v2",
    training_file=file.id,
    method={{"type": "contrastive"}},
)
print(job.id)
EOF"""
