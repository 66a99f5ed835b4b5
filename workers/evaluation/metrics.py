"""Which metrics there are for which rows. The first of each is the main one."""

from api_schemas.evaluation import MetricName
from api_schemas.files import DataFormat

RETRIEVAL: tuple[MetricName, ...] = ("mrr", "recall@1", "recall@5", "recall@10", "ndcg@10", "auc")
LABELS: tuple[MetricName, ...] = ("map@r", "knn_accuracy", "nmi", "auc")


def metrics_of(format: DataFormat, *, labelled: bool) -> tuple[MetricName, ...]:  # noqa: A002 (as it is called)
    """What can be measured on rows of a format; nothing where rows do not say what is alike."""
    if labelled:
        return LABELS
    return () if format in ("texts", "vectors") else RETRIEVAL
