# SPDX-License-Identifier: Apache-2.0
"""The client against peers that are dead, slow, lying, refusing: never a number but a right one."""

import base64
import contextlib
import io
import socket
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tests.rewards.peers import peer, says
from thinkgen_jax import rewards
from thinkgen_jax.rewards import facts, judge
from thinkgen_jax.rewards.remote import Client, Failed, Service, Unavailable, encode
from thinkgen_jax.structs import Request, Sample

RED = np.full((4, 6, 3), (255, 0, 7), np.uint8)
BOUNDS = dict(floor=0.0, ceiling=1.0)


def service(*urls, **changes):
    return Service(urls, **{"timeout": 2.0, "tries": 2, "backoff": 0.01} | changes)


def samples(count=2, **meta):
    return [Sample(Request("p", meta=meta), "i", RED) for _ in range(count)]


def score(answer, count=2, **changes):
    with peer(answer) as there, Client("r", service(there.url, **changes)) as client:
        return client.score(samples(count), **BOUNDS)[0].tolist(), there


def test_samples_arrive_whole():
    reply = lambda *_: (200, {"scores": [0.25], "details": [{"mu": 3}]})  # noqa: E731
    with peer(reply) as there, Client("r", service(there.url)) as client:
        request = Request("p", (RED,), meta={"tag": "t", "target": RED, "item": object()})
        got, details = client.score([Sample(request, "i", RED)], **BOUNDS)
    (path, body, headers), (sent,) = there.asked[0], there.asked[0][1]["samples"]
    assert got.tolist() == [0.25] and details == [{"mu": 3}] and path == "/score"
    assert headers["accept-encoding"] == "identity" and body.keys() == {"samples"}
    assert (sent["prompt"], sent["instruction"], sent["meta"]["tag"]) == ("p", "i", "t")
    assert "item" not in sent["meta"]  # nothing JSON can hold
    for text in (sent["image"], sent["references"][0], sent["meta"]["target"]["png"]):
        image = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))
        np.testing.assert_array_equal(image, RED)


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        ({"scores": [0.5]}, "1 scores for 2 samples"),
        ({"scores": [0.5, 0.5, 0.5]}, "3 scores for 2 samples"),
        ({"score": [0.5, 0.5]}, "no scores for 2 samples"),
        ([0.5, 0.5], "no object but list"),
        ({"scores": [0.5, 1.5]}, r"score 1.5, declared are \[0.0, 1.0\]"),
        ({"scores": [0.5, float("nan")]}, "no JSON"),
        (b'{"scores": [0.5, 1e999]}', "scores hold inf"),
        (b'{"scores": [0, 1' + b"0" * 400 + b"]}", "scores hold 1000"),
        ({"scores": [0.5, None]}, "scores hold None, no number"),
        ({"scores": [True, True]}, "scores hold True, no number"),
        ({"scores": [0.5, "0.5"]}, "'0.5', no number"),
        ({"scores": [0.5, 0.5], "details": [1]}, "details are not 2"),
        (b"\x80\x04K\x01.", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"", "no JSON"),
    ],
)
def test_lies_are_no_scores(said, cause):
    with pytest.raises(Failed, match=cause):
        score(lambda *_: (200, said))


def test_gigabytes_are_not_swallowed():
    with pytest.raises(Failed, match="longer than 1000 bytes"):
        score(lambda *_: (200, b"x" * 2_000_000), limit=1000)


def test_a_slow_peer_is_left():
    def dawdle(*_):
        time.sleep(1)
        return 200, {"scores": [0.5, 0.5]}

    begun = time.monotonic()
    with pytest.raises(Failed, match="timed out|Timeout"):
        score(dawdle, timeout=0.2, tries=1)
    assert time.monotonic() - begun < 0.9


def test_a_peer_that_drips_is_left():
    """A byte of the head every 20 ms: each comes in time, the whole never does."""
    door, stop = socket.create_server(("127.0.0.1", 0)), threading.Event()

    def drip():
        with contextlib.suppress(OSError):
            one, _ = door.accept()
            one.sendall(b"HTTP/1.1 200 OK\r\nx: ")
            while not stop.wait(0.02):
                one.sendall(b"a")

    threading.Thread(target=drip, daemon=True).start()
    begun = time.monotonic()
    try:
        one = service(f"http://127.0.0.1:{door.getsockname()[1]}", timeout=0.3, tries=1)
        with Client("r", one) as client, pytest.raises(Failed, match="timed out: no whole answer"):
            client.score(samples(), **BOUNDS)
    finally:
        stop.set()
        door.close()
    assert time.monotonic() - begun < 5


def test_rounding_beyond_the_bounds_is_no_lie():
    got, _ = score(lambda *_: (200, {"scores": [1.0000001, -1e-7]}))
    assert got == pytest.approx([1, 0], abs=1e-6)


def test_a_peer_that_hangs_is_not_waited_for_by_everybody():
    """All tries of the first request run out of time: the second has one, until one is answered."""
    hangs = [True]

    def answer(path, body, n):
        time.sleep(0.4 * hangs[0])
        return 200, {"scores": [0.5, 0.5]}

    with peer(answer) as there, Client("r", service(there.url, timeout=0.1, tries=3)) as client:
        for tries in (3, 1):
            with pytest.raises(Failed, match=rf"timed out: .*\({tries} tries\)"):
                client.score(samples(), **BOUNDS)
        hangs[0] = False
    with peer(answer) as there, Client("r", service(there.url, tries=3)) as client:
        client._hangs = True
        client.score(samples(), **BOUNDS)
        assert not client._hangs


def test_a_dead_peer_fails_and_says_where():
    with Client("hps", service("http://127.0.0.1:1")) as client:
        with pytest.raises(Failed, match=r"hps: http://127.0.0.1:1/score: .*\(2 tries\)"):
            client.score(samples(), **BOUNDS)


def test_a_busy_peer_is_asked_again_and_a_refusal_is_not():
    full = lambda path, body, n: (503, {"error": "full"}) if n == 1 else (200, {"scores": [1, 0]})  # noqa: E731
    got, there = score(full)
    assert got == [1, 0] and len(there.asked) == 2
    asked = []
    with pytest.raises(Failed, match="status 400: no such thing"):
        score(lambda *x: asked.append(x) or (400, b"no such\nthing"), tries=5)
    assert len(asked) == 1


def test_nobody_waits_for_a_client_that_was_closed():
    with Client("r", service("http://127.0.0.1:1", backoff=60.0)) as client:
        future = client.submit(lambda: client.score(samples(), **BOUNDS))
        time.sleep(0.1)
    with pytest.raises(Failed, match="http://127.0.0.1:1"):
        future.result(timeout=5)


def test_replicas_take_turns_and_stand_in_for_each_other():
    good = lambda *_: (200, {"scores": [0.5, 0.5]})  # noqa: E731
    slow = dict(backoff=60.0)  # another replica is asked without a pause
    with peer(good) as a, peer(good) as b, Client("r", service(a.url, b.url, **slow)) as client:
        for _ in range(4):
            client.score(samples(), **BOUNDS)
        assert len(a.asked) == len(b.asked) == 2
    with peer(good) as a, Client("r", service("http://127.0.0.1:1", a.url, **slow)) as client:
        for _ in range(2):
            client.score(samples(), **BOUNDS)
        assert len(a.asked) == 2


def test_replicas_must_serve_the_same():
    about = lambda version: lambda *_: (200, {"reward": "hps", "version": version})  # noqa: E731
    with peer(about("1")) as a, peer(about("2")) as b:
        with Client("r", service(a.url, b.url)) as client:
            with pytest.raises(Failed, match="different things"):
                client.health()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (dict(urls=()), "at least one http"),
        (dict(urls=("ftp://x",)), "at least one http"),
        (dict(urls=("http://me:secret@x",)), "a name or password does not belong in an address"),
        (dict(tries=0), "tries = 0"),
        (dict(timeout=0.0), "timeout = 0.0"),
        (dict(floor=1.0), "must rise"),
    ],
)
def test_services_out_of_range_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        Service(**{"urls": ("http://x",)} | bad)


# --- judges ---


def test_the_judge_is_shown_words_and_picture(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "s3cret")
    answer = lambda *_: says("Fine. Alignment Score: 5\n**Quality Score:** 3")  # noqa: E731
    with peer(answer) as there:
        one = service(there.url + "/v1", model="m", key="SOME_KEY")
        with Client("judge", one) as client:
            got = judge.rate(client, samples(1, description="two cats"))
    path, body, headers = there.asked[0]
    assert got.tolist() == [0.75] and path == "/v1/chat/completions"
    assert headers["authorization"] == "Bearer s3cret" and body["model"] == "m"
    text, picture = body["messages"][1]["content"]
    assert "two cats" in text["text"]
    assert picture["image_url"]["url"].startswith("data:image/png;base64,")


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        ("I cannot help with that.", "the judge gave no 'Alignment Score'"),
        ("Alignment Score: 5\nQuality Score: 9", r"no 'Quality Score' in \[1, 5\]"),
        ("Alignment Score: 4.5\nQuality Score: 3", "no 'Alignment Score'"),
        ("", "the answer is empty"),
        (None, "the answer is empty"),
    ],
)
def test_a_judge_that_refuses_gives_no_score(said, cause):
    with peer(lambda *_: says(said)) as there:
        with Client("judge", service(there.url, model="m")) as client:
            with pytest.raises(Failed, match=cause):
                judge.rate(client, samples(1))
    assert len(there.asked) == 2


def test_the_last_filled_form_counts():
    read = judge.named_scores(("A",), 0, 10)
    assert read("A: 3 ... so\n*A*: 10.") == (10,) and read("a : 7/10") == (7,)


@pytest.mark.parametrize("said", ["A: 4/10", "A: 4 / 50", "A: 4/5.5", "A: 4.5"])
def test_a_number_on_another_scale_is_none(said):
    read = judge.named_scores(("A",), 1, 5)
    assert read("A: 4/5.") == (4,)
    with pytest.raises(ValueError, match="no 'A'"):
        read(said)


# --- whole groups ---


def brightness(samples):
    return [float(s.image.mean()) / 255 for s in samples]


def scorer(url, **changes):
    weights = {f"{__name__}:brightness": 1.0, "far": 0.5}
    return rewards.Scorer(weights, {"far": service(url, **changes)}, drop_limit=0.25)


def test_a_fault_drops_the_whole_group_and_no_other():
    def answer(path, body, n):
        first = body["samples"][0]["prompt"]
        return 200, {"scores": [0.5] * (1 if first == "bad" else len(body["samples"]))}

    rows = [Sample(Request(p), "", RED) for p in ("good", "good", "bad", "bad")]
    with peer(answer) as there, scorer(there.url) as open_:
        got = open_.rate(rows, 2)
        assert got.failed.tolist() == [False, False, True, True]
        assert got.parts["far"][:2].tolist() == [0.5, 0.5] and len(got.causes) == 1
        assert "1 scores for 2 samples" in got.causes[0]
        total = rewards.total(
            rows, got.parts, {f"{__name__}:brightness": 1.0, "far": 0.5}, open_.servers
        )
        assert total[0] == pytest.approx(RED.mean() / 255 + 0.25)


def test_a_reward_is_asked_about_its_scenarios_alone():
    """A dead server of texts costs no other group; what is judged elsewhere is not shown here."""

    def rows(*kinds):
        items = [SimpleNamespace(scenario=kind) for kind in kinds]
        return [Sample(Request("p", meta={"item": item}), "", RED) for item in items]

    table = {"text": {"far": 1.0}, "edit": {"no words": 1.0, "form": 1.0}}
    weights, dead = {"form": 1.0}, service("http://127.0.0.1:1", tries=1)
    servers = {"far": dead, "no words": dead}
    with rewards.Scorer(weights, servers, scenarios=table) as open_:
        got = open_.rate(rows("plain", "plain", "text", "text"), 2)
    assert got.failed.tolist() == [False, False, True, True] and len(got.causes) == 1
    assert got.parts.keys() == {"form", "far", "no words"}
    answer = lambda path, body, n: (200, {"scores": [0.5]})  # noqa: E731
    with peer(answer) as there:
        servers = {"far": service(there.url)}
        with rewards.Scorer(weights, servers, scenarios={"text": {"far": 1.0}}) as open_:
            got = open_.rate(rows("plain", "text"), 1)
            lines = open_.describe()
    assert got.parts["far"].tolist() == [0, 0.5] and not got.failed.any()
    assert lines[0].endswith("scored here, for all others") and lines[1].endswith(", for text")


def test_invalid_samples_are_not_sent():
    def answer(path, body, n):
        return 200, {"scores": [0.5] * len(body["samples"])}

    rows = [Sample(Request("p"), "", RED, valid) for valid in (True, False)]
    with peer(answer) as there, scorer(there.url) as open_:
        got = open_.rate(rows, 2)
    assert got.parts["far"].tolist() == [0.5, 0.0] and not got.failed.any()
    assert len(there.asked[0][1]["samples"]) == 1


def test_past_the_share_of_drops_the_run_stops():
    """A dead server: two of ten steps may be lost under a limit of a quarter, not three."""
    with scorer("http://127.0.0.1:1", tries=1) as open_:
        for _ in range(2):
            rated = open_.rate(samples(), 2)
            assert rated.failed.all()
            open_.count(rated)
        with pytest.raises(Unavailable, match=r"30% of the groups .* last cause: far: http"):
            open_.count(rated)


def test_groups_are_under_way_while_others_are_drawn():
    """The answer to the first group is there before the second is sent."""

    def answer(path, body, n):
        return 200, {"scores": [n / 10] * 2}

    with peer(answer) as there, scorer(there.url) as open_:
        first = open_.start(samples(), 2)
        first["far"][0].result(timeout=5)
        assert len(there.asked) == 1
        both = {"far": first["far"] + open_.start(samples(), 2)["far"]}
        got = open_.finish(samples(4), 2, both)
    np.testing.assert_allclose(got.parts["far"], [0.1, 0.1, 0.2, 0.2], rtol=1e-6)


def test_every_reward_states_itself():
    about = {"reward": "hps", "version": "7", "floor": 0.0, "ceiling": 1.0}
    with peer(lambda *_: (200, about)) as there, scorer(there.url) as open_:
        near, far = open_.describe()
    assert "[0, 1]" in near and "version 1" in near and "scored here" in near
    assert "server hps 7" in far and there.url in far
    with peer(lambda *_: (200, {**about, "floor": -9.0})) as there, scorer(there.url) as open_:
        with pytest.raises(Failed, match=r"states bounds \(-9.0, 1.0\)"):
            open_.describe()


def test_swapped_servers_are_refused_at_the_start():
    """Rules of ours by name and version; free names, and detectors, may serve what they like."""

    def described(name, serves, version="1", **bounds):
        about = {"reward": serves, "version": version, **bounds}
        with peer(lambda *_: (200, about)) as there:
            with rewards.Scorer({name: 1.0}, {name: service(there.url)}) as open_:
                return open_.describe()[0]

    assert "server miniature 1" in described("miniature", "miniature")
    assert "server word_ned rapidocr 9" in described("word_ned", "word_ned", "rapidocr 9")
    assert "server hps 7" in described("far", "hps", "7")
    assert "server a detector 2" in described("geneval", "a detector", "2")
    wide = dict(floor=-1.0, ceiling=1.0)
    assert "server hpsv3 2" in described("hpsv3", "hpsv3", "2", **wide)
    for name, serves, bounds in (
        ("word_ned", "miniature_robust", {}),
        ("miniature", "miniature_robust", {}),
        ("hpsv3", "siglip2", wide),
        ("mine:length", "mine:width", {}),
    ):
        with pytest.raises(Failed, match=f"{name}: at http://.* is '{serves}', not '{name}'"):
            described(name, serves, **bounds)
    with pytest.raises(Failed, match="is version '2', here it is '1'"):
        described("miniature", "miniature", "2")


def test_a_server_that_becomes_another_gives_no_scores():
    """Exchanged while the run goes on: its groups are dropped, until the right one is back."""
    about, now = {"reward": "hps", "version": "7"}, [{}]

    def answer(path, body, n):
        scores = {} if body is None else {"scores": [0.5] * len(body["samples"])}
        return 200, {**about, **scores, **now[0]}

    with peer(answer) as there, scorer(there.url, tries=1) as open_:
        open_.describe()
        for other, failed in (({}, False), ({"version": "8"}, True), ({"reward": "x"}, True)):
            now[0] = other
            got = open_.rate(samples(), 2)
            assert got.failed.tolist() == [failed] * 2
        assert "the answer is of {'reward': 'x', 'version': '7'}" in got.causes[0]
        now[0] = {}
        assert open_.rate(samples(), 2).parts["far"].tolist() == [0.5, 0.5]


def test_what_needs_a_server_is_refused_without_one():
    with pytest.raises(ValueError, match="'hpsv3' needs an address in servers"):
        rewards.check({"hpsv3": 1.0})
    with pytest.raises(ValueError, match="'judge' needs the judge's model"):
        rewards.check({"judge": 1.0}, {"judge": service("http://x/v1")})
    with pytest.raises(ValueError, match=r"servers \['x'\] have no weight"):
        rewards.check({"form": 1.0}, {"x": service("http://x")})


def test_rewards_know_what_a_prompt_set_noted():
    item = SimpleNamespace(reward={"tag": "t", "description": "two cats"})
    sample = Sample(Request("p", meta={"item": item, "tag": "own"}), "i", RED)
    assert facts.described(sample) == "two cats"
    assert encode(sample)["meta"] == {"tag": "own", "description": "two cats"}


def test_geneval_judges_what_a_detector_saw():
    box, other = [0, 0, 9, 9, 0.9, "red"], [20, 0, 29, 9, 0.2, "blue"]
    answer = lambda *_: (200, {"scores": [0], "details": [{"dog": [box, other]}]})  # noqa: E731
    meta = {"tag": "colors", "include": [{"class": "dog", "count": 1, "color": "red"}]}
    with peer(answer) as there:
        with rewards.Scorer({"geneval": 1.0}, {"geneval": service(there.url)}) as open_:
            assert open_.rate(samples(1, **meta), 1).parts["geneval"].tolist() == [1.0]
    sixteen = [[0, 0, 9, 9, 0.9, ""]] * 20
    answer = lambda *_: (200, {"scores": [0], "details": [{"dog": sixteen}]})  # noqa: E731
    meta = {"tag": "single_object", "include": [{"class": "dog", "count": 1}]}
    for name, want in {"score": 0.0, "strict": 0.0, "flow": -14.0}.items():
        name = f"geneval_{name}"
        with peer(answer) as there:
            with rewards.Scorer({name: 1.0}, {name: service(there.url)}) as open_:
                assert open_.rate(samples(1, **meta), 1).parts[name].tolist() == [want]
    sure = {"dog": [[0, 0, 9, 9, 90, ""]]}  # percent
    for bad in ({"dog": [[0, 0]]}, [], sure, {"dog": [[0, 0, 9, 9, 0.9, "teal"]]}):
        answer = lambda *_, bad=bad: (200, {"scores": [0], "details": [bad]})  # noqa: E731
        with peer(answer) as there:
            with rewards.Scorer({"geneval": 1.0}, {"geneval": service(there.url)}) as open_:
                assert open_.rate(samples(1, **meta), 1).failed.all()
                with pytest.raises(ValueError, match="geneval needs meta"):
                    open_.rate(samples(1), 1)
