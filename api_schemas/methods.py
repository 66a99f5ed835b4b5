"""How a job trains: the loss, the data, the encoder and what it is evaluated by, under `method`."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError
from pydantic_core.core_schema import ValidationInfo

from api_schemas.base import Auto, AutoOrSearch, RequestModel
from api_schemas.evaluation import MetricName
from api_schemas.files import TrainingFormat


class ContrastiveLoss(RequestModel):
    """The loss that says what alike means. Cosine similarity; normalisation is inside. See docs/loss.md."""

    name: Literal["ntxent", "supcon", "search"] = Field(
        default="ntxent",
        description="Whether an anchor's other positives are left out of the denominator (ntxent) or not (supcon). "
        "With one positive for each anchor, as in files of pairs, the two are one. search: both are tried.",
    )
    temperature: Annotated[float, Field(gt=0, le=10)] | Literal["learnable", "auto", "search"] = Field(
        default="auto",
        description="Divides the cosines; smaller looks harder at the nearest negatives. learnable: trained with the "
        "weights, within 0.01 and 1. search: found by trials; see docs/search.md.",
    )
    reduction: Literal["pair", "anchor", "class"] | Auto = Field(
        default="auto",
        description="What counts the same: each pair, each anchor or each label; auto: pair for ntxent, anchor for "
        "supcon.",
    )
    symmetric: bool | None = Field(
        default=None,
        description="For files of pairs. null: every text of a batch is compared with every other. false: anchors are "
        "compared with positives only, as queries with documents. true: and positives with anchors.",
    )
    memory_size: Annotated[int, Field(ge=0, le=2**20)] = Field(
        default=0,
        description="How many texts of the steps before serve as further negatives and positives, once the learning "
        "rate has risen. Not with symmetric: true.",
    )

    @field_validator("memory_size")
    @classmethod
    def _one_direction_only(cls, size: int, info: ValidationInfo) -> int:
        if size and info.data.get("symmetric"):
            raise PydanticCustomError(
                "memory_is_not_asked", "must be 0 with symmetric: true, since texts of earlier steps can't ask again"
            )
        return size


class ContrastiveHyperparameters(RequestModel):
    """How to train. `auto` is resolved from the data when the job is queued, and echoed."""

    n_epochs: Annotated[int, Field(ge=1, le=1000)] | Auto = Field(
        default="auto", description="Passes over the training file."
    )
    batch_size: Annotated[int, Field(ge=2, le=65536)] | AutoOrSearch = Field(
        default="auto",
        description="Rows whose pairs are contrasted with one another in a step. search: found by trials.",
    )
    micro_batch_size: Annotated[int, Field(ge=1, le=65536)] | Auto = Field(
        default="auto",
        description="Rows whose texts are in memory at once. The gradient is that of the whole batch, at about two "
        "thirds of the speed where a batch takes more than one. auto: up to 8192 tokens. Halved where memory runs out.",
    )
    learning_rate: Annotated[float, Field(gt=0)] | AutoOrSearch = Field(
        default="auto", description="Peak learning rate of AdamW. search: found by trials."
    )
    trials: Annotated[int, Field(ge=2, le=100)] | None = Field(
        default=None,
        description="How many trainings a search takes; null: 12. Only where loss.temperature, loss.name, "
        'learning_rate or batch_size is "search"; the first two may stand here as well, as temperature and loss.',
    )
    lr_scheduler: Literal["linear", "cosine", "constant"] = Field(
        default="linear", description="How the learning rate goes on from its peak: down to 0, or not."
    )
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.1, description="Share of the steps in which the learning rate rises from 0."
    )
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.01
    max_grad_norm: Annotated[float, Field(gt=0)] = Field(
        default=1.0, description="Gradients are scaled down to this norm."
    )
    max_steps: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Stop after so many steps, whatever n_epochs says."
    )
    max_seq_length: Annotated[int, Field(ge=3, le=8192)] | Auto | None = Field(
        default="auto",
        description="Cut texts to so many tokens in training; auto: what the encoder reads. null for vectors.",
    )
    precision: Literal["fp32", "bf16"] | Auto = Field(
        default="auto",
        description="Of the encoder's arithmetic; weights, optimizer and loss are float32 always. auto: bf16 where a "
        "short measurement finds it at least 1.15 times as fast; resolved when training begins.",
    )
    on_collapse: Literal["warn", "stop"] = Field(
        default="warn",
        description="What to do when all texts get nearly the same embedding: an event of level warn, or also fail.",
    )


class DataOptions(RequestModel):
    """How the job's files are to be read, where their fields don't say it. See docs/data.md."""

    format: TrainingFormat | Auto = Field(default="auto", description="What the rows are; auto: told by their fields.")
    columns: dict[Annotated[str, Field(max_length=32)], Annotated[str, Field(max_length=256)]] | None = Field(
        default=None,
        max_length=8,
        description='Which field plays which role, such as {"anchor": "title", "positive": "body"}.',
    )
    view: Literal["dropout", "deletion", "span", "noise", "masking"] = Field(
        default="dropout",
        description="Plain texts: what makes the two versions of a text differ. dropout: the encoder's own; "
        "deletion: words left out; span: a run of words kept. Vectors: what is done to each, every time anew. dropout: "
        "nothing; noise: a tenth of Gaussian noise is added; masking: a tenth of its numbers become 0.",
    )
    additional_training_files: Annotated[list[str], Field(max_length=15)] = Field(
        default_factory=list,
        description="Ids of further files to train on. Each batch is of one file.",
    )
    mixing_temperature: Annotated[float, Field(gt=0)] = Field(
        default=1.0,
        description="How often each of several files comes: in proportion to its rows to the power of 1 / "
        "mixing_temperature, so that small files come more often as it grows.",
    )
    bucket_by_length: bool | Auto = Field(
        default="auto",
        description="Whether a batch is made of texts of like length, which saves padding. auto: only for encoders "
        "that pad; see docs/encoders.md.",
    )
    corpus: str | None = Field(
        default=None,
        description="Id of a BEIR corpus (`_id`, `text`, perhaps `title`). The job's other files are then relevance "
        "files, which name texts of it and of `queries`.",
    )
    queries: str | None = Field(
        default=None, validate_default=True, description="Id of the queries (`_id`, `text`) that go with `corpus`."
    )

    @field_validator("additional_training_files")
    @classmethod
    def _each_once(cls, file_ids: list[str]) -> list[str]:
        if len(set(file_ids)) < len(file_ids):
            raise PydanticCustomError("file_named_twice", "must name each file once")
        return file_ids

    @field_validator("queries")
    @classmethod
    def _with_corpus(cls, queries: str | None, info: ValidationInfo) -> str | None:
        corpus = info.data.get("corpus")
        if (queries is None) != (corpus is None):
            raise PydanticCustomError("half_a_collection", "must be given together with `corpus`: name both or neither")
        if corpus is not None and (info.data.get("columns") or info.data.get("format") not in ("auto", "pairs")):
            raise PydanticCustomError(
                "collection_read_another_way",
                "must stand without format and columns: relevance files always make pairs of their columns query-id, "
                "corpus-id and score",
            )
        return queries

    eval_split: Annotated[float, Field(ge=0, le=0.5)] | Auto = Field(
        default="auto",
        description="Share of the rows of training_file that is not trained on but asked about, taken by whole groups "
        "of rows that share texts; rows of additional_training_files that hold one of these texts are left out. auto: "
        "a tenth, of at most 1000 rows; none under 100 rows or with a validation_file.",
    )

    @property
    def as_uploaded(self) -> bool:
        """Whether the files are read as they were when they were uploaded."""
        return self.format == "auto" and not self.columns and self.corpus is None


class Checkpointing(RequestModel):
    """When the state of a training is kept, besides when it is stopped or paused and at its end."""

    every_steps: Annotated[int, Field(ge=1)] | None = Field(default=None, description="After so many steps.")
    every_seconds: Annotated[float, Field(ge=1)] | None = Field(
        default=None,
        description="After so many seconds. With both, whichever comes first; with neither after 120, or 400 times as "
        "long as writing one takes if that is more, but 600 at most.",
    )
    keep: Annotated[int, Field(ge=1, le=10)] = Field(
        default=2, description="How many are kept, the newest: if one turns out damaged, the one before serves."
    )


class EvaluationOptions(RequestModel):
    """What is measured on the evaluation split, and how often. See docs/evaluation.md."""

    every_steps: Annotated[int, Field(ge=1)] | Auto | None = Field(
        default=None,
        description="Measure every so many steps while training; auto: ten times in all; null: before and after only, "
        "unless early stopping or keep: best need more.",
    )
    metric: MetricName | Auto = Field(
        default="auto",
        description="The main metric; auto: mrr, map@r for labelled texts, spearman for scored pairs, and auc where "
        "they have two scores.",
    )
    keep: Literal["best", "last"] = Field(
        default="last", description="Which weights become the model: those of the last step, or of the best metric."
    )


class EarlyStoppingOptions(RequestModel):
    """When training ends before its last step."""

    patience: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=3, description="Stop after so many evaluations in a row without a new best."
    )
    min_delta: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="By how much more than the best the metric must be to be a new one."
    )


class LoraOptions(RequestModel):
    """The small matrices of `train: lora` (Hu et al. 2021)."""

    rank: Annotated[int, Field(ge=1, le=512)] = Field(default=8, description="Width of the two matrices.")
    alpha: Annotated[float, Field(gt=0, le=4096)] = Field(
        default=16.0, description="Their product is scaled by alpha over rank."
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="Of what goes into them.")


class ScratchOptions(RequestModel):
    """The encoder that `model: "scratch"` makes: a BERT of this size, and a tokenizer trained on the job's texts."""

    layers: Annotated[int, Field(ge=1, le=12)] = Field(default=4, description="Layers of attention.")
    hidden_size: Annotated[int, Field(ge=64, le=768, multiple_of=64)] = Field(
        default=256, description="Numbers of a token's state, and of a vector; each 64 have a head of attention."
    )
    vocabulary_size: Annotated[int, Field(ge=512, le=32768)] = Field(
        default=8192, description="Tokens at most. Pieces of words that occur once only are none."
    )
    max_seq_length: Annotated[int, Field(ge=8, le=1024)] = Field(
        default=256, description="Tokens that are read of a text."
    )


class ModelOptions(RequestModel):
    """What of the encoder is trained, and what it is asked to become; or the adapter for files of vectors.

    See docs/encoders.md. All but `adapter` is for models that read texts.
    """

    adapter: Literal["linear", "mlp"] | None = Field(
        default=None,
        description="For files of vectors: what the adapter may do to them. linear: a matrix; mlp: a layer of neurons "
        "beside them. null: linear, or what a tuned adapter is already. Not for models that read texts.",
    )
    scratch: ScratchOptions | None = Field(
        default=None, description='For `model: "scratch"`: how large the encoder is. null: as the defaults say.'
    )
    train: Literal["full", "lora", "projection"] = Field(
        default="full",
        description="full: all weights. lora: small matrices beside frozen ones. projection: a linear map after a "
        "frozen encoder.",
    )
    freeze_layers: Annotated[int, Field(ge=0, le=1000)] = Field(
        default=0, description="Keep the embeddings and so many of the first layers as they are; 0: nothing is frozen."
    )
    lora: LoraOptions = Field(default_factory=LoraOptions)
    projection_dim: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        default=None, description="Map vectors to so many dimensions. null: as many as the encoder has."
    )
    pooling: Literal["mean", "cls", "last"] | None = Field(
        default=None, description="How the states of a text's tokens become one vector. null: as the model has it."
    )
    matryoshka_dims: (
        Annotated[list[Annotated[int, Field(ge=1, le=16384)]], Field(min_length=1, max_length=16)] | None
    ) = Field(default=None, description="Train vectors that may be cut to their first so many numbers.")
    prompts: dict[Literal["query", "document"], Annotated[str, Field(max_length=1024)]] | None = Field(
        default=None,
        description="What is put before anchors (query) and before their answers (document). null: the model's own.",
    )


class HardNegatives(RequestModel):
    """Negatives that are mined from the file's own answers, before epochs. Between them they serve again."""

    per_anchor: Annotated[int, Field(ge=1, le=16)] = Field(
        default=1, description="How many texts join the batch for each of its anchors."
    )
    margin: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.95,
        description="A text whose cosine with the anchor is above so much of that of its own answer is left out, as a "
        "likely answer that nobody has marked.",
    )
    every_epochs: Annotated[int, Field(ge=1)] = Field(default=1, description="Mine anew before every so many-th epoch.")


class Contrastive(RequestModel):
    """Contrastive fine-tuning: pull what is alike together, push the rest apart."""

    data: DataOptions = Field(default_factory=DataOptions)
    model: ModelOptions = Field(default_factory=ModelOptions)
    loss: ContrastiveLoss = Field(default_factory=ContrastiveLoss)
    hyperparameters: ContrastiveHyperparameters = Field(default_factory=ContrastiveHyperparameters)
    hard_negatives: HardNegatives | None = Field(
        default=None, description="null: those that the file has, and the batch. For pairs and triplets."
    )
    checkpointing: Checkpointing = Field(default_factory=Checkpointing)
    evaluation: EvaluationOptions = Field(default_factory=EvaluationOptions)
    early_stopping: EarlyStoppingOptions | None = Field(default=None, description="null: take all steps.")
    export: Annotated[list[Literal["onnx"]], Field(max_length=1)] = Field(
        default_factory=list, description="What to write beside the weights: onnx, a graph for readers without torch."
    )

    @model_validator(mode="before")
    @classmethod
    def _short_forms_of_a_search(cls, given: Any) -> Any:
        """`hyperparameters.temperature: "search"` and `hyperparameters.loss: "search"` belong to the loss."""
        hyperparameters = given.get("hyperparameters") if isinstance(given, dict) else None
        loss = given.get("loss", {}) if isinstance(given, dict) else None
        if not isinstance(hyperparameters, dict) or not isinstance(loss, dict):
            return given
        places = {"temperature": "temperature", "loss": "name"}
        found = {name: place for name, place in places.items() if hyperparameters.get(name) == "search"}
        given_too = [place for place in found.values() if loss.get(place, "auto") not in ("auto", "search")]
        if given_too:
            raise PydanticCustomError(
                "searched_and_given",
                'must give `loss.{place}` or ask for a "search" of it, not both',
                {"place": given_too[0]},
            )
        rest = {name: value for name, value in hyperparameters.items() if name not in found}
        return given | {"hyperparameters": rest, "loss": loss | dict.fromkeys(found.values(), "search")}


class Method(RequestModel):
    """How to fine-tune. Contrastive is the one way there is."""

    type: Literal["contrastive"] = "contrastive"
    contrastive: Contrastive = Field(default_factory=Contrastive)

    def stored(self) -> dict[str, Any]:
        """As it is kept with a job: without what is null unless somebody says otherwise.

        While an installation is upgraded, workers of the version before train jobs that this one took. They refuse
        options that they don't know, which must then be there only where they are asked for.
        """
        return _without_null_defaults(self)


def _without_null_defaults(model: RequestModel) -> dict[str, Any]:
    kept = model.model_dump()
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if value is None and field.default is None:
            del kept[name]
        elif isinstance(value, RequestModel):
            kept[name] = _without_null_defaults(value)
    return kept
