"""What a job's evaluation says: the base and the tuned encoder on the same rows, which were not trained on."""

from typing import Literal

from pydantic import Field

from api_schemas.base import ResponseModel

MetricName = Literal[
    "mrr", "recall@1", "recall@5", "recall@10", "ndcg@10", "map@r", "knn_accuracy", "nmi", "spearman", "auc"
]
#: What is asked: which texts belong together, or how alike two are.
Task = Literal["retrieval", "labels", "scored_pairs"]
#: How people write them.
TITLES: dict[MetricName, str] = {
    "mrr": "MRR",
    "recall@1": "recall@1",
    "recall@5": "recall@5",
    "recall@10": "recall@10",
    "ndcg@10": "nDCG@10",
    "map@r": "MAP@R",
    "knn_accuracy": "k-NN accuracy",
    "nmi": "NMI",
    "spearman": "Spearman's rank correlation",
    "auc": "AUC",
}


class EvaluationSplit(ResponseModel):
    """Which rows were asked about."""

    id: str = Field(description="A hash of what the rows hold: equal for equal rows, in whatever file and order.")
    source: Literal["validation_file", "training_file"] = Field(
        description="training_file: carved out of it, and not trained on."
    )
    file: str = Field(description="The file's id.")
    rows: int = Field(description="Rows of the split.")
    queries: int = Field(
        description="Texts that were asked about, or scored pairs: of a large split, those of a sample of its rows."
    )
    documents: int = Field(
        description="Texts among which each query's answers were looked for; 0 for scored pairs, where nothing is."
    )
    distractors: int = Field(description="Those of the documents that come from the training file.")
    groups: int = Field(description="Groups of queries that share texts. Intervals draw whole groups.")


class MetricComparison(ResponseModel):
    """A metric before and after training, and how sure the difference is."""

    name: MetricName
    base: float
    tuned: float
    difference: float = Field(description="tuned less base.")
    low: float = Field(description="Lower end of the difference's 95 % interval.")
    high: float = Field(description="Upper end.")
    conclusion: Literal["better", "worse", "no_clear_difference"] = Field(
        description="no_clear_difference: the interval holds 0, so the difference may be chance."
    )


class ChangedExample(ResponseModel):
    """A query whose answer moved far, or a scored pair that moved far. Texts are cut to 200 characters."""

    query: str
    answer: str = Field(description="A right answer; of labelled texts their label; of a scored pair its other text.")
    place_before: int = Field(
        description="Where the first right answer stood under the base encoder, from 1. Of a scored pair: where it "
        "stood among all pairs by its cosine, the highest first."
    )
    place_after: int = Field(description="Where it stands under the tuned one.")
    score: float | None = Field(default=None, description="Of a scored pair.")
    place_by_score: int | None = Field(
        default=None, description="Where a scored pair belongs; pairs of one score share the middle of their places."
    )


class CosineHistogram(ResponseModel):
    """How many pairs have a cosine within two edges. Counts are one fewer than edges.

    Of scored pairs, right ones have a score above `divided_at`, which is halfway from the lowest to the highest.
    """

    edges: list[float]
    right_before: list[int]
    right_after: list[int]
    wrong_before: list[int] = Field(description="Of random pairs that are not alike; or of those with lower scores.")
    wrong_after: list[int]
    divided_at: float | None = Field(default=None, description="null where pairs have no scores.")


class MetricAtStep(ResponseModel):
    """The main metric on the split after a step; step 0 is the base encoder."""

    step: int
    value: float


class SearchTrial(ResponseModel):
    """One training of a search. The first has what `auto` stands for in place of everything that is searched for."""

    number: int = Field(description="From 1.")
    choices: dict[str, float | int | str] = Field(
        description="What was tried: of temperature, loss, learning_rate, batch_size."
    )
    metric: float | None = Field(
        description="The main metric on the selection rows, where the trial ended; null if it failed."
    )
    low: float | None = Field(description="Lower end of its 95 % interval; null for a pruned trial.")
    high: float | None = Field(description="Upper end.")
    steps: int = Field(description="Steps taken.")
    pruned: bool = Field(description="Whether it was given up: it was hopeless, or its training failed.")


class Search(ResponseModel):
    """What a search found, on rows of the training files that neither trials nor the evaluation above trained on."""

    trials: list[SearchTrial]
    chosen: int = Field(description="Number of the trial whose weights became the model.")
    metric: MetricName
    rows: int = Field(description="Rows of the training file that trials were compared on; no part of the evaluation.")
    said: str = Field(description="Whether it matters, in a sentence.")


class Evaluation(ResponseModel):
    """A job's evaluation on its frozen split."""

    object: Literal["fine_tuning.job.evaluation"] = "fine_tuning.job.evaluation"
    job: str
    task: Task
    metric: MetricName = Field(description="The main one.")
    summary: str = Field(description="What came of it, in a sentence.")
    split: EvaluationSplit
    metrics: list[MetricComparison] = Field(description="The main one first.")
    resamples: int = Field(description="Of the bootstrap that the intervals come from.")
    seed: int
    gained: list[ChangedExample] = Field(description="Those that gained most, the largest gain first.")
    lost: list[ChangedExample] = Field(description="Those that lost most, the largest loss first.")
    cosines: CosineHistogram
    history: list[MetricAtStep] = Field(description="The main metric while training.")
    kept_step: int = Field(description="After how many steps the model that was kept was trained.")
    stopped_early: bool
    search: Search | None = Field(default=None, description="Where the job searched for hyperparameters.")
