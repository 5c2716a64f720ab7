# SPDX-License-Identifier: Apache-2.0
"""The server: batches, the bounded queue, refusals, and our client at its other end."""

import contextlib
import http.client
import json
import threading
import time
from types import SimpleNamespace

import httpx
import numpy as np
import pytest

from launch import reward_server
from tests.data import real
from thinkgen_jax import rewards
from thinkgen_jax.data import images, prompt_sets, sources
from thinkgen_jax.rewards.remote import Client, Failed, Service, encode
from thinkgen_jax.structs import Request, Sample
from thinkgen_jax.world import render, tasks

BUSY, GATE = threading.Event(), threading.Event()
ABOUT = {"reward": "mean", "version": "3", "floor": 0.0, "ceiling": 1.0}


def sample(value=51, **meta):
    return Sample(Request("p", meta=meta), "i", np.full((2, 2, 3), value, np.uint8))


def means(state, samples):
    state.append(len(samples))
    return [(s["image"].mean() / 255, s["meta"]) for s in samples]


def gated(sizes):
    """A scorer that says when it is busy, waits for the gate, and bears no white."""
    GATE.clear()
    BUSY.clear()

    def score(state, samples):
        BUSY.set()
        GATE.wait(5)
        if any(s["image"].max() == 255 for s in samples):
            raise RuntimeError("too bright")
        return means(sizes, samples)

    return score


@contextlib.contextmanager
def served(score=means, state=None, **changes):
    how = dict(host="127.0.0.1", port=0, batch=4, waiting=8, patience=5.0) | changes
    scorer = SimpleNamespace(score=score, ABOUT=ABOUT)
    server = reward_server.serve(scorer, [] if state is None else state, **how)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        server.work.close()


def begin(one, url, score, waiting):
    """Sends requests while the scorer is busy with the first, until all others wait."""
    ask = lambda value: one.score([sample(value)], floor=0.0, ceiling=1.0)  # noqa: E731
    pending = [one.submit(ask, score[0])]
    assert BUSY.wait(5)
    pending += [one.submit(ask, value) for value in score[1:]]
    end = time.monotonic() + 5
    while httpx.get(f"{url}/health").json()["waiting"] < waiting:
        assert time.monotonic() < end
        time.sleep(0.01)
    return pending


def client(url, **changes):
    return Client("mean", Service((url,), **{"tries": 1, "timeout": 5.0} | changes))


def test_scores_and_details_and_health():
    picture = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)

    def score(state, samples):
        assert samples[0]["meta"]["target"].tolist() == picture.tolist()
        return [(0.25, {"seen": samples[0]["prompt"]})]

    with served(score) as url, client(url) as one:
        got, details = one.score([sample(target=picture)], floor=0.0, ceiling=1.0)
        assert got.tolist() == [0.25] and details == [{"seen": "p"}]
        (about,) = one.health()
    assert about == {**ABOUT, "sees": "", "status": "ok", "waiting": 0}


def test_waiting_requests_share_a_batch():
    sizes = []
    with served(gated(sizes)) as url, client(url, workers=8) as one:
        pending = begin(one, url, [51] * 6, 5)
        GATE.set()
        for future in pending:
            assert future.result()[0] == pytest.approx([0.2])
    assert sizes == [1, 4, 1]


def test_a_full_queue_says_so():
    with served(gated([]), waiting=1, batch=1) as url, client(url, workers=8) as one:
        pending = begin(one, url, [51] * 5, 1)
        while sum(p.done() for p in pending) < 3:
            time.sleep(0.01)
        GATE.set()
        told = [p.exception() for p in pending]
    assert sum("the queue is full" in str(error) for error in told) == 3
    assert told.count(None) == 2


def refusal(url, length):
    """What a request is told whose body never comes."""
    asked = http.client.HTTPConnection(url.removeprefix("http://"), timeout=5)
    asked.putrequest("POST", "/score")
    asked.putheader("content-length", str(length))
    asked.endheaders()
    with asked.getresponse() as told:
        said = told.status, json.loads(told.read())["error"]
    asked.close()
    return said


def test_a_full_queue_reads_no_body():
    with served(gated([]), waiting=1, batch=1) as url, client(url, workers=8) as one:
        pending = begin(one, url, [51] * 2, 1)
        assert refusal(url, 1000) == (503, "the queue is full")
        large = {"samples": [{"prompt": "p" * 2**22}]}  # one that is sent all the same is told, too
        told = httpx.post(f"{url}/score", json=large)
        assert (told.status_code, told.json()) == (503, {"error": "the queue is full"})
        GATE.set()
        assert [p.exception() for p in pending] == [None, None]


def test_all_requests_share_one_memory(monkeypatch):
    """Room for one request of 40 x 50 pixels and a small one: a second is told to come again."""
    monkeypatch.setattr(reward_server, "MAX_HELD", 10_000)
    large = Sample(Request("p"), "i", np.full((40, 50, 3), 51, np.uint8))
    ask = lambda one: one.score([large], floor=0.0, ceiling=1.0)[0]  # noqa: E731
    with served(gated([])) as url, client(url) as one:
        first = one.submit(ask, one)
        assert BUSY.wait(5)
        with pytest.raises(Failed, match="status 503.*the memory for requests is full"):
            ask(one)  # whose pixels are too many
        assert refusal(url, 2000) == (503, "the memory for requests is full")
        GATE.set()
        assert first.result() == pytest.approx([0.2])
        for _ in range(3):  # what was held or refused is given back
            assert ask(one) == pytest.approx([0.2])
        for body in (b"garbage" * 100, json.dumps({"samples": [encode(large)] * 3}).encode()):
            assert httpx.post(f"{url}/score", content=body).status_code in (400, 503)
        assert ask(one) == pytest.approx([0.2])


def test_what_nobody_waits_for_is_given_back(monkeypatch):
    monkeypatch.setattr(reward_server, "MAX_HELD", 10_000)
    large = Sample(Request("p"), "i", np.full((40, 50, 3), 51, np.uint8))
    ask = lambda one: one.score([large], floor=0.0, ceiling=1.0)[0]  # noqa: E731
    with served(gated([]), patience=0.3) as url, client(url) as one:
        for _ in range(2):
            with pytest.raises(Failed, match="status 503"):
                ask(one)
        GATE.set()
        end = time.monotonic() + 20
        while True:
            try:
                assert ask(one) == pytest.approx([0.2])
                break
            except Failed:
                assert time.monotonic() < end


def test_one_bad_sample_spoils_its_own_request_alone():
    with served(gated([])) as url, client(url) as one:
        pending = begin(one, url, [0, 0, 255], 2)
        GATE.set()
        assert [p.exception() is None for p in pending] == [True, True, False]
        assert "RuntimeError: too bright" in str(pending[2].exception())


@pytest.mark.parametrize("scores", [[], [0.5, 0.5], [float("nan")]])
def test_a_scorer_that_lies_is_an_error(scores):
    with served(lambda *_: scores) as url, client(url) as one:
        with pytest.raises(Failed, match="status 500.*the scorer gave"):
            one.score([sample()], floor=0.0, ceiling=1.0)


@pytest.mark.parametrize("detail", [{"mu": float("nan")}, object()])
def test_a_detail_that_json_does_not_know_is_an_error(detail):
    with served(lambda *_: [(0.5, detail)]) as url, client(url) as one:
        with pytest.raises(Failed, match="status 500.*JSON"):
            one.score([sample()], floor=0.0, ceiling=1.0)


def test_small_files_do_not_unpack_to_gigabytes(monkeypatch):
    """Two pictures of 4 pixels each where a request may have 7."""
    monkeypatch.setattr(reward_server, "MAX_SHOWN", 7)
    with served() as url, client(url) as one:
        assert one.score([sample()], floor=0.0, ceiling=1.0)[0] == pytest.approx([0.2])
        with pytest.raises(Failed, match="status 400.*7 in a request, 3 are left"):
            one.score([sample(), sample()], floor=0.0, ceiling=1.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--scorer=ours:beauty"], "'beauty' is not one of"),
        (["--scorer=ours:hpsv3"], "'hpsv3' needs an address in servers"),
        (["--scorer=ours:form", "--batch=0"], "--batch=0: must be at least 1"),
        (["--scorer=ours:form", "--port=99999"], "--port=99999"),
    ],
)
def test_one_line_for_what_cannot_be_served(given, message, monkeypatch):
    monkeypatch.setattr("sys.argv", ["reward_server", *given])
    with pytest.raises(SystemExit) as stop:
        reward_server.main()
    told = str(stop.value)
    assert told.startswith("error: ") and message in told and "\n" not in told


def test_what_takes_too_long_is_an_error():
    with served(lambda *_: time.sleep(0.3) or [0.5], patience=0.05) as url, client(url) as one:
        with pytest.raises(Failed, match="status 503.*not scored within 0.05 s"):
            one.score([sample()], floor=0.0, ceiling=1.0)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x80\x04K\x01.",
        b"[1]",
        b'{"samples": 3}',
        b'{"samples": [{"image": "x"}]}',
        b'{"samples": [{"prompt": "p", "image": "bm8gcGljdHVyZQ=="}]}',
    ],
)
def test_garbage_is_refused(body):
    with served() as url:
        assert httpx.post(f"{url}/score", content=body).status_code == 400
        assert httpx.post(f"{url}/elsewhere", content=body).status_code == 404
        huge = http.client.HTTPConnection(url.removeprefix("http://"), timeout=5)
        huge.putrequest("POST", "/score")
        huge.putheader("content-length", str(2**40))
        huge.endheaders()
        assert huge.getresponse().status == 413
        huge.close()
        with client(url) as one:  # and the server lives on
            assert one.score([sample()], floor=0.0, ceiling=1.0)[0] == pytest.approx([0.2])


def test_a_reward_of_ours_scores_the_same_at_home_and_served():
    scorer = reward_server.load("ours:form")
    state = scorer.load(["form"])
    rows = [Sample(Request("p"), words, None) for words in ("a ring", "<x")]
    asked = {"samples": [encode(row) for row in rows]}
    samples = reward_server.parse(json.dumps(asked).encode())
    assert scorer.score(state, samples) == [1.0, 0.0]
    assert scorer.ABOUT["reward"] == "form" and scorer.ABOUT["sees"] == "the instruction"


@pytest.mark.parametrize("scenario", tasks.SCENARIOS)
def test_an_exercise_travels_and_is_judged_as_at_home(scenario):
    """The served verifier makes it again; the disturbance of the robust score hangs on the seed."""
    scorer = reward_server.load("ours:miniature_robust")
    state = scorer.load(["miniature_robust"])
    rows, rng = [], np.random.default_rng(1)
    for number in range(3):
        item = tasks.mixed({scenario: 1.0}, number, "train")
        right = None if item.target is None else render.render(item.target)
        # Speckled, so that not every score is 1.
        if right is not None:
            right = np.where(rng.random(right.shape) < 0.03 * number, 0, right).astype(np.uint8)
        request = sources.from_item(item, think=True, seed=number + 7)
        rows.append(Sample(request, item.instruction if number else "two red rings", right))
    sent = reward_server.parse(json.dumps({"samples": [encode(row) for row in rows]}).encode())
    assert sent[1]["seed"] == 8 and sent[1]["meta"]["item"]["scenario"] == scenario
    at_home = rewards.REWARDS["miniature_robust"].function(rows)
    assert scorer.score(state, sent) == at_home.tolist() and at_home.max() > 0


def test_the_target_of_a_prompt_file_reaches_the_scorer_as_a_picture(tmp_path):
    """From a line of JSON to what `siglip2` is given, at the size that pictures have in a run."""
    for n, name in enumerate(("in.png", "out.png")):
        (tmp_path / name).write_bytes(real.picture(n, size=(80, 64)))
    line = {"scenario": "edit", "prompt": "make it blue", "images": ["in.png"]}
    line["reward"] = {"target": "out.png", "description": "a blue cat"}
    (tmp_path / "a.jsonl").write_text(json.dumps(line) + "\n")
    items = prompt_sets.read(prompt_sets.PromptSet("jsonl", str(tmp_path / "a.jsonl")))
    prompt_sets.check_pictures(items, (48, 48))
    (data,), _ = prompt_sets.streams(items, size=1, seed=0, picture=(48, 48))
    (request,) = data[0]
    drawn = np.full((48, 48, 3), 7, np.uint8)
    sent = json.dumps({"samples": [encode(Sample(request, "i", drawn))]}).encode()
    (got,) = reward_server.parse(sent)
    for shown, name in ((got["meta"]["target"], "out.png"), (got["references"][0], "in.png")):
        near = images.open_picture(tmp_path / name, near=(48, 48)).image
        np.testing.assert_array_equal(shown, images.fill(near, (48, 48)))
    assert not np.array_equal(got["meta"]["target"], got["references"][0])
    assert got["meta"]["description"] == "a blue cat" and set(got["meta"]) == {
        *("target", "description"),
    }


def test_an_exercise_that_is_none_is_an_error_of_its_request():
    scorer = reward_server.load("ours:miniature")
    state = scorer.load(["miniature"])
    body = json.dumps({"samples": [{"prompt": "p", "meta": {"item": {"scenario": "x"}}}]}).encode()
    with pytest.raises(TypeError):
        scorer.score(state, reward_server.parse(body))


def test_an_unknown_scorer_is_refused():
    with pytest.raises(SystemExit, match="--scorer=beauty: no file .* known are"):
        reward_server.load("beauty")
