"""What `auto` stands for: a job's method with every choice made, from what its file holds."""

from typing import Literal, TypeVar

from api_schemas.jobs import OpenAIHyperparameters
from api_schemas.methods import (
    Contrastive,
    ContrastiveHyperparameters,
    ContrastiveLoss,
    DataOptions,
    EvaluationOptions,
    Method,
)

Value = TypeVar("Value")

#: Whose tokens a file's report counts, and what `likeness inspect` measures, unless another is named.
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
#: Also where a learnable temperature starts.
TEMPERATURE = 0.05
#: How each loss was published.
REDUCTIONS: dict[str, Literal["pair", "anchor"]] = {"ntxent": "pair", "supcon": "anchor"}
LEARNING_RATE = 5e-5
#: Of an adapter for vectors. On pairs with a direction in common and noise in all others (D 48 to 1024, 200 to 1000
#: pairs, linear and mlp), from 1e-4 to 1e-2 every larger rate found more of the held-out partners: at D = 384, 28 % of
#: them before training, 92 % after it at 1e-3, 99 % at 3e-3, 100 % at 1e-2. This one keeps some distance from the last.
ADAPTER_LEARNING_RATE = 3e-3
#: Of an encoder from scratch.
SCRATCH_LEARNING_RATE = 5e-4
BATCH_SIZE = 64
#: Two labels of two texts each: less holds no positive and negative at once for labelled texts.
SMALLEST_BATCH = 4
#: Epochs are chosen so that a job sees about this many rows …
ROWS_SEEN = 10_000
#: … but no row more often than this.
MOST_EPOCHS = 10
#: From scratch there is more to learn.
SCRATCH_ROWS_SEEN, SCRATCH_MOST_EPOCHS = 150_000, 30
#: A batch leaves at least this many steps in an epoch, as far as the data allows.
FEWEST_STEPS_PER_EPOCH = 4
#: An evaluation split holds this share of the rows …
EVAL_SHARE = 0.1
#: … but no more than this …
MOST_EVAL_ROWS = 1000
#: … and of files with fewer rows than this nothing: they need them all.
FEWEST_ROWS_TO_SPLIT = 100
#: Trainings that a search takes.
TRIALS = 12
#: Evaluations while training.
EVALUATIONS = 10


def resolve(
    method: Method,
    openai: OpenAIHyperparameters | None,
    *,
    rows: int,
    max_seq_length: int | None,
    split_rows: int | None = None,
    pads: bool = False,
) -> Method:
    """The method without any `auto`, for training files of `rows` rows together and an encoder's `max_seq_length`.

    That is None for what reads vectors. split_rows: rows of the file that rows are held out of; None: `rows`. `pads`
    says whether the encoder spends arithmetic on padding.

    What `method` says wins over what OpenAI's older `hyperparameters` say. What is to be found by trials stays
    `search`, and so does the reduction that follows from a loss that is.
    """
    openai = openai or OpenAIHyperparameters()
    asked = method.contrastive.hyperparameters
    from_scratch = method.contrastive.model.scratch is not None
    multiplier = openai.learning_rate_multiplier
    usual_rate = usual_learning_rate(max_seq_length, from_scratch=from_scratch)
    fallback_rate = usual_rate * (1.0 if multiplier == "auto" else multiplier)
    hyperparameters = asked.model_copy(
        update={
            "n_epochs": _first(asked.n_epochs, openai.n_epochs, _epochs(rows, from_scratch=from_scratch)),
            "batch_size": _first(asked.batch_size, openai.batch_size, usual_batch_size(rows)),
            "learning_rate": _first(asked.learning_rate, fallback_rate),
            "max_seq_length": _length(asked.max_seq_length, max_seq_length),
            "trials": asked.trials or (TRIALS if searched(method.contrastive) else None),
        }
    )
    update = {
        "data": _resolved_data(method.contrastive.data, rows if split_rows is None else split_rows, pads),
        "loss": _resolved_loss(method.contrastive.loss),
        "hyperparameters": hyperparameters,
        "evaluation": _resolved_evaluation(method.contrastive, hyperparameters, rows),
    }
    contrastive = method.contrastive.model_copy(update=update)
    return method.model_copy(update={"contrastive": contrastive})


def searched(contrastive: Contrastive) -> list[str]:
    """The fields that are to be found by trials."""
    loss, hyperparameters = contrastive.loss, contrastive.hyperparameters
    asked = {
        "loss.temperature": loss.temperature,
        "loss.name": loss.name,
        "hyperparameters.learning_rate": hyperparameters.learning_rate,
        "hyperparameters.batch_size": hyperparameters.batch_size,
    }
    return [name for name, value in asked.items() if value == "search"]


def batch_size_to_check(method: Method, rows: int) -> int:
    """The batch size of a resolved method; of a search, the one that it begins with."""
    size = method.contrastive.hyperparameters.batch_size
    return size if isinstance(size, int) else usual_batch_size(rows)


def openai_view(method: Method, openai: OpenAIHyperparameters | None) -> dict[str, int | float | str]:
    """The hyperparameters where OpenAI's clients look for them."""
    hyperparameters = method.contrastive.hyperparameters
    return {
        "n_epochs": hyperparameters.n_epochs,
        "batch_size": hyperparameters.batch_size,
        "learning_rate_multiplier": openai.learning_rate_multiplier if openai else "auto",
    }


def _resolved_loss(loss: ContrastiveLoss) -> ContrastiveLoss:
    return loss.model_copy(
        update={
            "temperature": TEMPERATURE if loss.temperature == "auto" else loss.temperature,
            "reduction": loss.reduction if loss.name == "search" else _first(loss.reduction, REDUCTIONS[loss.name]),
        }
    )


def _resolved_data(data: DataOptions, split_rows: int, pads: bool) -> DataOptions:
    update = {
        "bucket_by_length": _first(data.bucket_by_length, pads),
        "eval_split": _first(data.eval_split, _eval_share(split_rows)),
    }
    return data.model_copy(update=update)


def _resolved_evaluation(
    contrastive: Contrastive, hyperparameters: ContrastiveHyperparameters, rows: int
) -> EvaluationOptions:
    asked = contrastive.evaluation
    every = asked.every_steps
    if every is None and (asked.keep == "best" or contrastive.early_stopping is not None):
        every = "auto"
    if every == "auto":
        size = hyperparameters.batch_size
        size = size if isinstance(size, int) else usual_batch_size(rows)
        steps = int(hyperparameters.n_epochs) * -(-rows // size)
        every = max(1, min(steps, hyperparameters.max_steps or steps) // EVALUATIONS)
    return asked.model_copy(update={"every_steps": every})


def _eval_share(rows: int) -> float:
    return 0.0 if rows < FEWEST_ROWS_TO_SPLIT else min(EVAL_SHARE, MOST_EVAL_ROWS / rows)


def _first(*choices: Value | Literal["auto"]) -> Value:
    """The first choice that isn't `auto`; the last one never is."""
    return next(choice for choice in choices if choice != "auto")


def _length(asked: int | Literal["auto"] | None, most: int | None) -> int | None:
    """Tokens that are read of a text, of at most `most`; None for what reads vectors."""
    if most is None or asked is None or asked == "auto":
        return most
    return min(asked, most)


def _epochs(rows: int, *, from_scratch: bool) -> int:
    seen, most = (SCRATCH_ROWS_SEEN, SCRATCH_MOST_EPOCHS) if from_scratch else (ROWS_SEEN, MOST_EPOCHS)
    return min(most, max(1, round(seen / max(rows, 1))))


def usual_learning_rate(max_seq_length: int | None, *, from_scratch: bool) -> float:
    """Of an encoder that reads so many tokens; None: of an adapter for vectors."""
    if max_seq_length is None:
        return ADAPTER_LEARNING_RATE
    return SCRATCH_LEARNING_RATE if from_scratch else LEARNING_RATE


def usual_batch_size(rows: int) -> int:
    """What `auto` stands for in training files of `rows` rows together."""
    return min(BATCH_SIZE, max(SMALLEST_BATCH, rows // FEWEST_STEPS_PER_EPOCH))
