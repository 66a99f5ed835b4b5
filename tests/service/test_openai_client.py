"""The unmodified `openai` client against the real service."""

from tests.installation import PAIRS, TINY, Installation


def test_a_file_becomes_a_model_that_embeds(installation: Installation) -> None:
    client = installation.openai
    job = installation.create_job(installation.upload(PAIRS), suffix="words")
    assert job.status == "queued"
    done = installation.train(job)
    assert done.status == "succeeded"
    assert done.fine_tuned_model.startswith(f"ft:{TINY}:default:words:")
    base = client.embeddings.create(model=TINY, input="the word a").data[0].embedding
    tuned = client.embeddings.create(model=done.fine_tuned_model, input="the word a").data[0].embedding
    assert base != tuned
    assert abs(sum(value * value for value in tuned) - 1) < 1e-6
