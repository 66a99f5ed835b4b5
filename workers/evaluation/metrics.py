"""Which metrics there are for which rows. The first of each is the main one."""

import numpy as np

from api_schemas.evaluation import MetricName
from workers.data.prepared import Prepared

RETRIEVAL: tuple[MetricName, ...] = ("mrr", "recall@1", "recall@5", "recall@10", "ndcg@10", "auc")
LABELS: tuple[MetricName, ...] = ("map@r", "knn_accuracy", "nmi", "auc")
SCORED: tuple[MetricName, ...] = ("spearman",)
#: Scores that say no more than whether two texts are alike.
BINARY: tuple[MetricName, ...] = ("auc", "spearman")


def metrics_of(data: Prepared) -> tuple[MetricName, ...]:
    """What can be measured on rows; nothing where they do not say what is alike."""
    if data.scores is not None:
        return BINARY if len(np.unique(data.scores[data.rows])) == 2 else SCORED
    if data.labels is not None:
        return LABELS
    return () if data.format in ("texts", "vectors") else RETRIEVAL
