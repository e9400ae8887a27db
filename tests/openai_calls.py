"""Every video call of the official client, run with whichever version is on the path: `ADDRESS KEY PICTURE`.

`lossy` is an address behind which the answer to the first create is lost on its way.
"""

from __future__ import annotations

import sys
import warnings

import openai

warnings.simplefilter("ignore", DeprecationWarning)  # its makers mark all of `videos`


def main(address: str, lossy: str, key: str, picture: str) -> None:
    client = openai.OpenAI(base_url=f"{address}/v1", api_key=key)
    with open(picture, "rb") as file:
        data = file.read()

    quick = {"seed": 7, "num_inference_steps": 2}
    made = client.videos.create_and_poll(prompt="a", input_reference=data, extra_body=quick, poll_interval_ms=50)
    assert (made.status, made.progress, made.size) == ("completed", 100, "32x32"), made
    assert made.seed == 7 and made.completed_at >= made.created_at
    polled = client.videos.poll(
        client.videos.create(prompt="b", input_reference=("b.png", data)).id, poll_interval_ms=50
    )
    assert client.videos.retrieve(polled.id).status == "completed"
    assert [video.id for video in client.videos.list(limit=1)] == [polled.id, made.id]  # over pages
    assert [video.id for video in client.videos.list(limit=1, order="asc")] == [made.id, polled.id]
    marks = {"video": b"ftyp", "thumbnail": b"WEBP", "spritesheet": b"JFIF"}
    for variant, mark in marks.items():
        assert mark in client.videos.download_content(made.id, variant=variant).read()
    removed = client.videos.delete(polled.id)
    assert (removed.deleted, removed.object) == (True, "video.deleted")

    for bad, kind, param in (
        (lambda: client.videos.retrieve("nobody"), openai.NotFoundError, None),
        (lambda: client.videos.create(prompt="a"), openai.BadRequestError, "input_reference"),
        (lambda: client.videos.create(prompt="a", input_reference=b"x"), openai.BadRequestError, "input_reference"),
        (
            lambda: openai.OpenAI(base_url=f"{address}/v1", api_key="vm_x").videos.list(),
            openai.AuthenticationError,
            None,
        ),
        (lambda: client.videos.remix(made.id, prompt="a"), openai.InternalServerError, None),
    ):
        try:
            bad()
        except kind as error:
            assert error.param == param and error.request_id, error
        else:
            raise AssertionError(f"no {kind.__name__}")

    # A key that may have one unfinished video: refused with a time, and accepted by the client's own retries.
    first = client.videos.create(prompt="slow", input_reference=data, extra_body={"num_inference_steps": 40})
    impatient = client.with_options(max_retries=0)
    try:
        impatient.videos.create(prompt="next", input_reference=data)
    except openai.RateLimitError as error:
        assert error.code == "rate_limit_exceeded" and 1 <= int(error.response.headers["retry-after"]) <= 120
    else:
        raise AssertionError("no RateLimitError")
    patient = client.with_options(max_retries=20)
    patient.videos.poll(patient.videos.create(prompt="next", input_reference=data).id, poll_interval_ms=50)
    assert client.videos.retrieve(first.id).status == "completed"

    # An answer that is lost: the client tries again by itself, and there is one video.
    before = len(list(client.videos.list()))
    client.with_options(base_url=f"{lossy}/v1").videos.create(prompt="once", input_reference=data)
    assert len(list(client.videos.list())) == before + 1
    print(openai.__version__)


if __name__ == "__main__":
    main(*sys.argv[1:])
