"""What a job's evaluation says: the base and the tuned encoder on the same rows, which were not trained on."""

from typing import Literal

from pydantic import Field

from api_schemas.base import ResponseModel

MetricName = Literal["mrr", "recall@1", "recall@5", "recall@10", "ndcg@10", "map@r", "knn_accuracy", "nmi", "auc"]
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
    queries: int = Field(description="Texts that were asked about: of a large split, those of a sample of its rows.")
    documents: int = Field(description="Texts among which each query's answers were looked for.")
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
    """A query whose answer moved far. Texts are cut to 200 characters."""

    query: str
    answer: str = Field(description="A right answer; of labelled texts their label.")
    place_before: int = Field(description="Where the first right answer stood under the base encoder, from 1.")
    place_after: int = Field(description="Where it stands under the tuned one.")


class CosineHistogram(ResponseModel):
    """How many pairs have a cosine within two edges. Counts are one fewer than edges."""

    edges: list[float]
    right_before: list[int]
    right_after: list[int]
    wrong_before: list[int] = Field(description="Of random pairs that are not alike.")
    wrong_after: list[int]


class MetricAtStep(ResponseModel):
    """The main metric on the split after a step; step 0 is the base encoder."""

    step: int
    value: float


class Evaluation(ResponseModel):
    """A job's evaluation on its frozen split."""

    object: Literal["fine_tuning.job.evaluation"] = "fine_tuning.job.evaluation"
    job: str
    task: Literal["retrieval", "labels"]
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
