"""Requests to a server on loopback that is slow, refuses, breaks off and loses answers: one training, never two."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image
from replicate_server import SECRET, Fault, Seen

from companion.replicate.service import TOKEN, Job, LostError, Receipt, Service, ServiceError, read_token, rehearsal

START = r"POST /v1/models/.*/trainings"


@pytest.mark.parametrize(("trainer", "destination"), [("sdxl", "you/m"), ("a/b", "you/m"), ("a/b:c", "m")])
def test_names_that_are_none_are_refused(trainer, destination):
    with pytest.raises(ValueError, match="is not owner/name"):
        Job(trainer, destination, {})
    with pytest.raises(ValueError, match="nothing.zip is not there"):
        Job("a/b:c", "you/m", {"instance_data": Path("nothing.zip")})


@pytest.mark.parametrize("webhook", ["http://example.com/hook", "example.com", "https://", "https://a b"])
def test_a_webhook_that_is_no_https_address_is_refused(webhook):
    with pytest.raises(ValueError, match="no https address"):
        Job("a/b:c", "you/m", {}, webhook=webhook)


# ---- The whole recipe


def test_train_follow_predict_as_rehearsed(server, service, job, tmp_path):
    """The rehearsal says what the client sends: method, path and body, in this order."""
    id = service.start(job)
    looks = list(service.follow(id, every=0))
    assert [look.status for look in looks] == ["processing", "succeeded"]
    assert [look.log for look in looks] == ["look 0\n", "look 1\n"]
    (picture,) = service.predict(looks[-1].version, {"prompt": "an oscvtr doctor"}, tmp_path / "out", every=0)
    assert picture.read_bytes() == server.picture and picture.suffix == ".png"
    service.cancel(id)

    def plain(request: Seen) -> tuple:
        text = json.dumps(request.body)
        for name, stands in ((f"{server.url}/v1/files/file0", "<address of subject.zip>"), ("abc123", "<new version>")):
            text = text.replace(name, stands)
        path = request.path.replace(id, "<id>").replace("prediction0", "<id>")
        return request.method, path, json.loads(text)

    sent = [plain(seen) for seen in server.requests if not seen.path.startswith("/pictures")]
    sent = [request for i, request in enumerate(sent) if i == 0 or request != sent[i - 1]]  # followed more than once
    said = [(r.method, r.path, r.body) for r in rehearsal(job, prompt="an oscvtr doctor")]
    assert sent == said
    assert server.files["file0"].count(job.files["instance_data"].read_bytes()) == 1
    assert server.asked(START)[0].body["webhook_events_filter"] == ["completed"]
    assert len(server.trainings) == 1


def test_a_rehearsal_names_what_is_sent_once(job):
    said = list(rehearsal(job))
    assert [r.path.split("/")[-1] for r in said if not r.repeatable] == ["trainings", "predictions"]
    assert "SENT ONCE" in str(said[4]) and '"caption_prefix"' in str(said[4])
    with pytest.raises(ValueError, match="inputs of me/mine are not known here"):
        list(rehearsal(Job("me/mine:1", "you/m", job.fields)))


@pytest.mark.parametrize("size", [{}, {"size": 768}])
def test_a_picture_to_begin_with_is_sent_square(server, service, pictures, tmp_path, size):
    service.predict("you/model:abc", {"prompt": "x", "image": pictures / "0.png"}, tmp_path / "out", every=0, **size)
    assert server.predictions["prediction0"]["input"]["image"] == f"{server.url}/v1/files/file0"
    upload = server.files["file0"]
    jpeg = upload[upload.index(b"\xff\xd8") : upload.rindex(b"\xff\xd9") + 2]
    side = size.get("size", 512)
    assert Image.open(io.BytesIO(jpeg)).size == (side, side)


@pytest.mark.parametrize("size", [0, 500])
def test_a_size_that_no_model_draws_is_refused_before_anything_is_sent(server, service, tmp_path, size):
    with pytest.raises(ValueError, match=f"{size} x {size} pixels suits no model: give a multiple of 8"):
        service.predict("you/model:abc", {"prompt": "x"}, tmp_path, size=size)
    assert not server.predictions


# ---- What goes wrong

LOST = [Fault(drop="before"), Fault(drop="after"), Fault(status=500), Fault(slow=1.0), Fault(garbage=True)]


@pytest.mark.parametrize("fault", LOST, ids=lambda f: f.drop or f.status or ("slow" if f.slow else "garbage"))
def test_a_lost_answer_never_starts_a_second_training(server, service, job, fault):
    server.fail(START, fault)
    begun = fault.drop != "before" and not fault.status
    if begun:
        assert service.start(job) == "training0"
    else:
        with pytest.raises(LostError, match="not sent again.*--again"):
            service.start(job)
        with pytest.raises(LostError):  # and the next call asks again instead of starting
            service.start(job)
    assert len(server.asked(START)) == 1
    assert len(server.trainings) == int(begun)
    if not begun:
        assert service.start(job, again=True) == "training0"
        assert len(server.trainings) == 1


@pytest.mark.parametrize(
    ("status", "sentence"),
    [(401, "make a new one|Make a new token"), (402, "billing"), (404, "Check the owner"), (422, "steps: too many")],
)
def test_a_refusal_is_told_and_can_be_mended(server, service, job, status, sentence):
    server.fail(START, Fault(status=status, detail="steps: too many"))
    with pytest.raises(ServiceError, match=sentence):
        service.start(job)
    assert len(server.asked(START)) == 1 and not server.trainings
    assert service.start(job) == "training0", "nothing was started, so it may be tried again"


def test_too_many_requests_are_repeated_when_it_says(server, service, job):
    server.fail(START, Fault(status=429, retry_after="1"))
    assert service.start(job) == "training0"
    assert len(server.asked(START)) == 2 and len(server.trainings) == 1
    server.fail(r"GET /v1/trainings/\w+", Fault(status=429, retry_after="0"), Fault(status=503))
    assert [look.status for look in service.follow("training0", every=0)][-1] == "succeeded"


def test_too_many_requests_for_ever(server, service, job):
    server.fail(START, *[Fault(status=429)] * 9)
    with pytest.raises(ServiceError, match="did not start the training in 3 tries"):
        service.start(job)
    assert len(server.asked(START)) == 3 and not server.trainings


@pytest.mark.parametrize("fault", [Fault(drop="middle"), Fault(drop="after"), Fault(status=500), Fault(status=429)])
def test_an_upload_that_breaks_is_begun_again(server, service, job, fault):
    server.fail("POST /v1/files", fault)
    service.start(job)
    sent = server.asked(START)[0].body["input"]["input_images"]
    whole = job.files["instance_data"].read_bytes()
    assert whole in server.files[sent.rpartition("/")[2]], "what is trained on was uploaded whole"
    assert len(server.asked("POST /v1/files")) == 2 and len(server.trainings) == 1


def test_an_upload_that_breaks_for_ever_starts_nothing(server, service, job):
    server.fail("POST /v1/files", *[Fault(drop="middle")] * 9)
    with pytest.raises(ServiceError, match="did not take subject.zip in 3 tries.*connection broke"):
        service.start(job)
    assert not server.asked(START) and not list(service.receipts.glob("*"))


@pytest.mark.parametrize(
    "what", [r"GET /v1/models/.*/versions/\w+", "GET /v1/models/you/model", r"GET /v1/trainings/\w+"]
)
@pytest.mark.parametrize(
    "fault", [Fault(drop="before"), Fault(status=500), Fault(slow=1.0)], ids=["drop", "500", "slow"]
)
def test_questions_are_asked_again(server, service, job, what, fault):
    server.fail(what, fault)
    *_, last = service.follow(service.start(job), every=0)
    assert last.status == "succeeded" and len(server.trainings) == 1


def test_without_a_server_nothing_is_lost(job, tmp_path):
    service = Service(SECRET, base_url="http://127.0.0.1:9", tries=2, pause=0.01, receipts=tmp_path / "r")
    with pytest.raises(ServiceError, match="no connection") as error:
        service.start(job)
    assert not isinstance(error.value, LostError)


def test_a_training_that_fails_is_told(server, service, job):
    server.states = ("starting", "failed")
    *_, last = service.follow(service.start(job), every=0)
    assert (last.status, last.error, last.version) == ("failed", "out of memory", "")


def test_an_equal_job_is_not_started_twice(server, service, job, tmp_path):
    assert service.start(job) == service.start(job) == "training0"
    other = Service(SECRET, base_url=server.url, receipts=service.receipts)  # another process, later
    assert other.start(job) == "training0" and len(server.asked(START)) == 1
    changed = Job(job.trainer, job.destination, dict(job.fields) | {"max_train_steps": 100})
    assert service.start(changed) == "training1"


def test_two_processes_at_once_start_one(server, service, job, monkeypatch):
    """The other one writes its receipt while this one uploads."""
    upload = Service.upload

    def meanwhile(self, path):
        Receipt.of(job, service.receipts).sent({"input": {}})
        return upload(self, path)

    monkeypatch.setattr(Service, "upload", meanwhile)
    with pytest.raises(ServiceError, match="Another process"):
        service.start(job)
    assert not server.trainings


def test_a_lost_prediction_is_not_repeated(server, service, tmp_path):
    server.fail("POST /v1/predictions", Fault(drop="after"))
    with pytest.raises(LostError, match="Asked to draw"):
        service.predict("you/model:abc", {"prompt": "x"}, tmp_path)
    assert len(server.predictions) == 1


def test_a_destination_that_someone_else_just_made(server, service, job):
    server.fail("GET /v1/models/you/model", Fault(status=404))
    server.models.add("you/model")
    assert service.start(job) == "training0"


def test_a_model_that_cannot_be_trained(server, service, job):
    server.inputs = {}
    with pytest.raises(ServiceError, match="cannot be trained"):
        service.start(job)


# ---- The token


def test_the_token_goes_to_the_service_and_nowhere_else(server, service, job, tmp_path, capfd, caplog):
    """Search everything that is written, printed or raised for it, both when all goes well and when it goes wrong."""
    said = []
    id = service.start(job)
    service.predict("you/model:abc", {"prompt": "x"}, tmp_path / "out", every=0)
    for fault in (Fault(status=401, detail=f"bad token {SECRET}"), Fault(status=500, detail=SECRET), *LOST):
        server.fail(r"POST /v1/trainings/\w+/cancel", *[fault] * 3)
        try:
            service.cancel(id)
        except ServiceError as error:
            said += [str(error), repr(error), repr(error.__cause__)]
    assert any("***" in text for text in said)
    said += [*capfd.readouterr(), caplog.text, repr(service)]
    said += [path.read_bytes().decode("latin1") for path in tmp_path.rglob("*") if path.is_file()]
    assert len(said) > 10 and not [text for text in said if SECRET in text]
    own = [seen for seen in server.requests if not seen.path.startswith("/pictures")]
    assert {seen.token for seen in own} == {f"Bearer {SECRET}"}
    assert {seen.token for seen in server.asked("GET /pictures/0.png")} == {""}, "pictures lie with strangers"


def test_the_token_is_read_from_the_environment_or_asked_for_unseen(monkeypatch):
    monkeypatch.setenv(TOKEN, f" {SECRET}\n")
    assert read_token() == SECRET
    monkeypatch.setenv(TOKEN, f"{SECRET} {SECRET}")
    with pytest.raises(ValueError, match="spaces or signs") as error:
        read_token()
    assert SECRET not in str(error.value)
    monkeypatch.delenv(TOKEN)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(ValueError, match=f"set {TOKEN}"):
        read_token()
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("getpass.getpass", lambda prompt: SECRET)
    assert read_token() == SECRET
