from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from encoders import onnx
from encoders.adaptation import Adaptation
from encoders.errors import MissingExtraError
from encoders.export import save
from encoders.folder import check_folder
from encoders.text import TextEncoder
from tests.encoders.random_models import write_model

TEXTS = ["a cat", "two cats sat on the mat", "", "a dog of many words and colours"]


# Torch's exporter warns of its own parts.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_the_graph_gives_the_vectors_of_the_model(tmp_path: Path) -> None:
    encoder = TextEncoder.load(write_model(tmp_path / "base", "bert", num_hidden_layers=1))
    Adaptation(projection_dim=16, pooling="last").prepare(encoder, seed=0)
    folder = tmp_path / "out"
    save(encoder, folder, base_folder=tmp_path / "base")
    onnx.write(folder)
    check_folder(folder)
    session = onnxruntime.InferenceSession(str(folder / onnx.FILE))
    tokens = [text.ids for text in encoder.tokenize(TEXTS)]
    ids, mask = (np.zeros((4, max(map(len, tokens))), dtype=np.int64) for _ in range(2))
    for row, text in enumerate(tokens):
        ids[row, : len(text)], mask[row, : len(text)] = text, 1
    (vectors,) = session.run(["sentence_embedding"], {"input_ids": ids, "attention_mask": mask})
    assert np.abs(vectors - encoder.encode(TEXTS)).max() < 1e-4
    assert (folder / onnx.FILE).stat().st_size > 30522 * 32 * 4, "the weights are in it"


def test_without_its_libraries_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"likeness\[onnx\]"):
        onnx.check_installed()
