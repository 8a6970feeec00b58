"""Trainings and pictures on Replicate: what each request will be, and sending them through Replicate's own client.

A training costs money, so its one request is never sent twice. It is not repeated when its answer is lost; the list of
trainings tells whether it arrived. A receipt on disk keeps an equal job from being started again.

    job = Job("owner/trainer:version", "you/model", fields)
    service = Service(read_token())
    for progress in service.follow(service.start(job)):
        print(progress.log)
"""

from __future__ import annotations

import getpass
import hashlib
import io
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import companion
from companion.files import sha256, written
from companion.replicate.fields import TRAINERS, Translation, translate

T = TypeVar("T")

#: The environment variable with the token.
TOKEN = "REPLICATE_API_TOKEN"
#: The states in which a training or a prediction is over.
DONE = ("succeeded", "failed", "canceled", "aborted")
#: What may help when Replicate refuses a request, by the status of its answer.
ADVICE = {
    401: f" Make a new token at replicate.com/account/api-tokens, and set {TOKEN}.",
    402: " See replicate.com/account/billing.",
    403: " Is the destination yours?",
    404: " Check the owner, the name and the version.",
}


# ---- The requests ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One training.

    Args:
        trainer: owner/name:version, from the trainer's page.
        destination: owner/name of the model that the training fills.
        fields: the recipe, by the names of `companion.replicate.fields.FIELDS`; a Path is a file to upload.
        webhook: an https address that Replicate calls when the training is over.
        hardware: what the destination runs on, if it has to be made.

    Raises ValueError for names or a webhook that are not of this form, when a file is missing, when `instance_data` is
    no zip with at least three readable pictures, and when `class_data` is no zip with one.
    """

    trainer: str
    destination: str
    fields: Mapping[str, Any]
    webhook: str = ""
    hardware: str = "gpu-t4"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[^/:\s]+/[^/:\s]+:[0-9a-zA-Z]+", self.trainer):
            raise ValueError(f"trainer={self.trainer!r} is not owner/name:version, as its page has it.")
        if not re.fullmatch(r"[^/:\s]+/[^/:\s]+", self.destination):
            raise ValueError(f"destination={self.destination!r} is not owner/name, such as you/my-model.")
        if self.webhook and not re.fullmatch(r"https://[^/\s]+(/\S*)?", self.webhook):
            raise ValueError(f"webhook={self.webhook!r} is no https address; what Replicate sends there is private.")
        for path in self.files.values():
            if not path.is_file():
                raise ValueError(f"{path} is not there; `companion replicate zip` makes it.")
        if self.files:
            from companion.photographs import LEAST, check_zip  # they need Pillow, and a help page does not

            # A training that fails for its pictures costs money all the same. (Missing class images are drawn there.)
            for name, least in (("instance_data", LEAST), ("class_data", 1)):
                if name in self.files:
                    check_zip(self.files[name], least)

    @property
    def name(self) -> str:
        """owner/name of the trainer, without its version."""
        return self.trainer.partition(":")[0]

    @property
    def address(self) -> str:
        """The path of the trainer's version in Replicate's API."""
        return f"/v1/models/{self.name}/versions/{self.trainer.partition(':')[2]}"

    @property
    def files(self) -> dict[str, Path]:
        """The fields that are files to upload."""
        return {name: value for name, value in self.fields.items() if isinstance(value, Path)}

    def body(self, translation: Translation, urls: Mapping[str, str]) -> dict[str, Any]:
        """The body of the request that costs money; `urls` holds the address of each uploaded file, by field."""
        ready = dict(translation.input)
        for old, new in translation.names.items():
            if old in urls:
                ready[new] = urls[old]
        body: dict[str, Any] = {"input": ready, "destination": self.destination}
        if self.webhook:
            body |= {"webhook": self.webhook, "webhook_events_filter": ["completed"]}
        return body

    @property
    def digest(self) -> str:
        """16 hexadecimal digits, the same for jobs of the same trainer, destination, values and bytes of the files."""
        said = {k: sha256(v) if isinstance(v, Path) else v for k, v in sorted(self.fields.items())}
        return hashlib.sha256(json.dumps([self.trainer, self.destination, said]).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Request:
    """A request as it would be sent.

    Attributes:
        method, path, body: of the HTTP request; `body` is JSON.
        why: what the request is for, in a few words; notebook 07 shows it.
        upload: the file that goes with it, in words.
        repeatable: whether it may be sent twice.
    """

    method: str
    path: str
    why: str
    body: Any = None
    upload: str = ""
    repeatable: bool = True

    def __str__(self) -> str:
        times = "may be repeated" if self.repeatable else "SENT ONCE"
        lines = [f"{self.method} {self.path}", f"    {self.why}; {times}"]
        if self.upload:
            lines.append(f"    {self.upload}")
        if self.body is not None:
            lines += ["    " + line for line in json.dumps(self.body, indent=2).splitlines()]
        return "\n".join(lines)


def rehearsal(
    job: Job, schema: Mapping[str, Mapping[str, Any]] | None = None, prompt: str = "a photo of ..."
) -> Iterator[Request]:
    """Yield every request of a training and of a first picture, in order, without sending any.

    The tests compare these with the requests that `Service` sends.

    Args:
        schema: the trainer's inputs (see `translate`); those of `TRAINERS` when left out.
        prompt: what the first picture should show.

    Raises ValueError where `translate` does, and for a trainer that `TRAINERS` does not have.
    """
    if schema is None and job.name not in TRAINERS:
        raise ValueError(f"The inputs of {job.name} are not known here; known are {', '.join(TRAINERS)}.")
    translation = translate(job.fields, schema or TRAINERS[job.name])
    owner, name = job.destination.split("/")
    yield Request("GET", job.address, "which inputs has the trainer?")
    yield Request("GET", f"/v1/models/{job.destination}", "is the destination there?")
    model = {"owner": owner, "name": name, "visibility": "private", "hardware": job.hardware}
    yield Request("POST", "/v1/models", "if it is not, make it, private", body=model)
    urls = {}
    for field_name, path in job.files.items():
        if field_name in translation.names:
            urls[field_name] = f"<address of {path.name}>"
            size = f"{path.name}, {path.stat().st_size:,} bytes"
            yield Request("POST", "/v1/files", "upload", upload=size)
    body = job.body(translation, urls)
    yield Request("POST", f"{job.address}/trainings", "start the training, which costs money", body, repeatable=False)
    yield Request("GET", "/v1/trainings/<id>", "how far is it? asked until it is over")
    drawing = {"version": "<new version>", "input": {"prompt": prompt}}
    why = "a picture by the new model, which costs a little"
    yield Request("POST", "/v1/predictions", why, drawing, repeatable=False)
    yield Request("GET", "/v1/predictions/<id>", "is it drawn?")
    yield Request("POST", "/v1/trainings/<id>/cancel", "to stop a training that goes wrong")


# ---- Sending them ----------------------------------------------------------------------------------------------------


class ServiceError(ValueError):
    """Replicate refused a request or cannot be reached; this request started nothing."""


class LostError(ServiceError):
    """A request was sent, and whether Replicate acted on it is not known."""


def read_token() -> str:
    """The token from the environment, or typed by the user without being shown. It is not stored anywhere.

    Raises ValueError when there is none, or when it has characters that no token has; the message does not quote it.
    """
    token = os.environ.get(TOKEN, "").strip()
    if not token and sys.stdin is not None and sys.stdin.isatty():
        token = getpass.getpass("Replicate token (it is not shown): ").strip()
    if not token:
        raise ValueError(f"There is no token: set {TOKEN}; replicate.com/account/api-tokens makes one.")
    if not re.fullmatch(r"[\x21-\x7e]+", token):  # the HTTP library would quote it in an error of its own
        raise ValueError(f"{TOKEN} holds spaces or signs that no token has: copy it again.")
    return token


@dataclass
class Receipt:
    """A file that records a job's training, so that an equal job does not start a second one.

    Attributes:
        path: of the file; the token is not in it.
        state: "" before the request, "sent" from just before it until its answer, then "started".
        id: of the training, once it is known.
        input: what was sent to the trainer.
    """

    path: Path
    state: str = ""
    id: str = ""
    input: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, job: Job, folder: Path) -> Receipt:
        """The receipt of an equal job, or an empty one."""
        path = folder / f"{job.destination.replace('/', '--')}-{job.digest}.json"
        return cls(path, **json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else cls(path)

    def sent(self, body: Mapping[str, Any]) -> None:
        """Record that the request is about to be sent. Raises FileExistsError if another process did so first."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.state, self.input = "sent", dict(body["input"])
        with self.path.open("x", encoding="utf-8") as file:
            file.write(self._text())

    def started(self, id: str) -> None:
        """Record the training's id."""
        self.state, self.id = "started", id
        with written(self.path) as temporary:
            temporary.write_text(self._text(), encoding="utf-8")

    def drop(self) -> None:
        """Delete the receipt, so that the job can be started (again)."""
        self.path.unlink(missing_ok=True)
        self.state = ""

    def _text(self) -> str:
        return json.dumps({"state": self.state, "id": self.id, "input": self.input}, indent=1) + "\n"


@dataclass(frozen=True)
class Progress:
    """The state of a training when Replicate was asked for it.

    Attributes:
        status: "starting", "processing", or one of `DONE`.
        log: what was added to the log since the last look.
        version: owner/name:version of the trained model, once the training has succeeded.
        error: why it failed, if it did.
    """

    status: str
    log: str = ""
    version: str = ""
    error: str = ""


class Service:
    """Replicate, through its own client (the extra `[replicate]`).

    Args:
        token: see `read_token`; it goes to Replicate only, and is removed from every message.
        base_url: another address of the API, for tests; the client also reads it from REPLICATE_BASE_URL.
        timeout: seconds to wait for an answer.
        tries: how often a request is sent at most, if it may be repeated.
        pause: seconds before the first repetition; it doubles each time.
        receipts: the folder of receipts; runs/replicate/ when left out.
    """

    def __init__(
        self,
        token: str,
        *,
        base_url: str | None = None,
        timeout: float = 60.0,
        tries: int = 4,
        pause: float = 2.0,
        receipts: Path | None = None,
    ) -> None:
        import httpx
        import replicate

        self._token, self.tries, self.pause = token, tries, pause
        self.receipts = receipts or companion.ROOT / "runs" / "replicate"
        self._wait_for = 0.0
        # By itself the client repeats only GET and the like, and only after 429, 503 and 504.
        self._client = replicate.Client(
            api_token=token,
            base_url=base_url,
            timeout=httpx.Timeout(timeout, connect=10.0),
            event_hooks={"response": [self._note]},
        )

    def _note(self, response: Any) -> None:
        after = response.headers.get("Retry-After", "")
        self._wait_for = min(float(after), 60.0) if after.isdigit() else 0.0

    def clean(self, text: Any) -> str:
        """The text with the token replaced by ***, in case a message quotes it; "" for None."""
        return str(text or "").replace(self._token, "***")

    def _send(self, what: str, call: Callable[[], T], *, repeatable: bool = True) -> T:
        """Make a request, repeat it while that may help and does no harm, and give the client's answer.

        Args:
            what: what Replicate is asked to do, for error messages.
            call: makes the request.
            repeatable: False for what costs money. Then the request is repeated only when Replicate cannot have acted
                on it: when no connection was made, or when the answer was 429, "too many requests".

        Raises:
            ServiceError: Replicate refused, or the tries are used up.
            LostError: it is not repeatable, and Replicate may have acted on it.
        """
        import httpx
        from replicate.exceptions import ReplicateError

        pause = self.pause
        for attempt in range(1, self.tries + 1):
            begun = True
            try:
                return call()
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
                problem, begun = f"no connection ({type(error).__name__})", False
            except httpx.HTTPError as error:
                problem = f"the connection broke ({type(error).__name__})"
            except ReplicateError as error:
                status = error.status or 0
                problem = f"it answered {status}: {self.clean(error.detail or error.title or 'no reason given')}"
                if status == 429:
                    begun = False
                elif status < 500:
                    raise ServiceError(f"Replicate refused to {what}; {problem}.{ADVICE.get(status, '')}") from None
            except (ValueError, AttributeError):  # the client could not read the answer
                problem = "the answer cannot be read"
            if not repeatable and begun:
                raise LostError(f"Asked to {what}, Replicate gave no usable answer: {problem}.") from None
            if attempt < self.tries:
                time.sleep(self._wait_for or pause)
                pause *= 2
        raise ServiceError(f"Replicate did not {what} in {self.tries} tries; {problem}. Try again later.")

    def schema(self, trainer: str) -> dict[str, dict[str, Any]]:
        """The inputs of a trainer (owner/name:version): the `properties` of its OpenAPI description.

        Raises ServiceError when there is no such trainer, or the model cannot be trained.
        """
        from replicate.version import Versions

        name, _, version = trainer.partition(":")
        versions = Versions(self._client, model=name)
        found = self._send("describe the trainer", lambda: versions.get(version)).openapi_schema
        schemas = (found or {}).get("components", {}).get("schemas", {})
        if "TrainingInput" not in schemas:
            raise ServiceError(f"{trainer} is a model that cannot be trained: name a trainer.")
        references = {f"#/components/schemas/{key}": value for key, value in schemas.items()}
        properties = schemas["TrainingInput"].get("properties", {})
        # A field with choices refers to another part of the description, which lists them.
        return {
            key: {**value, **next((references.get(part.get("$ref"), {}) for part in value.get("allOf", [])), {})}
            for key, value in properties.items()
        }

    def make_destination(self, job: Job) -> None:
        """Make the model that the training fills, as a private one, unless it exists."""
        owner, name = job.destination.split("/")
        try:
            self._send("look up the destination", lambda: self._client.models.get(job.destination))
            return
        except ServiceError as error:
            if "answered 404" not in str(error):
                raise
        try:
            # Repeating is safe, since a second model of the same name is refused.
            self._send(
                "make the destination",
                lambda: self._client.models.create(owner, name, visibility="private", hardware=job.hardware),
            )
        except ServiceError as error:
            if "answered 409" not in str(error):
                raise

    def upload(self, path: Path) -> str:
        """Upload a file, and give its address. An upload that breaks off costs nothing, so it is repeated."""
        return self._upload(path.name, path)

    def _upload(self, name: str, content: Path | io.BytesIO) -> str:
        return self._send(f"take {name}", lambda: self._client.files.create(content)).urls["get"]

    def start(self, job: Job, *, again: bool = False) -> str:
        """Start the job's training, once, and give its id. If an equal job was started before, give that one's id.

        What can fail without cost comes first: checking the trainer's inputs, making the destination, uploading the
        files. Then the one request that costs money is sent. If its answer is lost, the list of trainings is searched
        for one with the addresses of these uploads, which no other training has.

        Args:
            again: start it even if an equal job was started before.

        Raises:
            ServiceError: nothing was started, or an earlier request cannot be looked up at the moment.
            LostError: the training may have been started; the message says where to look.
        """
        receipt = Receipt.of(job, self.receipts)
        if again:
            receipt.drop()
        if receipt.state == "started":
            return receipt.id
        if receipt.state == "sent":
            return self._search(receipt, job)
        translation = translate(job.fields, self.schema(job.trainer))
        self.make_destination(job)
        urls = {name: self.upload(path) for name, path in job.files.items() if name in translation.names}
        body = job.body(translation, urls)
        try:
            receipt.sent(body)
        except FileExistsError:
            raise ServiceError("Another process has just started an equal training; this one starts none.") from None
        try:
            training = self._send(
                "start the training",
                lambda: self._client.trainings.create(version=job.trainer, **body),
                repeatable=False,
            )
        except LostError:
            return self._search(receipt, job)
        except ServiceError:
            receipt.drop()
            raise
        receipt.started(training.id)
        return training.id

    def _search(self, receipt: Receipt, job: Job) -> str:
        """Find the training whose answer was lost in the list of trainings, and give its id; else raise LostError."""
        addresses = {v for v in receipt.input.values() if isinstance(v, str) and v.startswith("http")}
        pause = self.pause
        for _ in range(self.tries):
            page = self._send("list the trainings", self._client.trainings.list)
            for training in page.results:
                if addresses & {v for v in (training.input or {}).values() if isinstance(v, str)}:
                    receipt.started(training.id)
                    return training.id
            time.sleep(pause)
            pause *= 2
        raise LostError(
            f"Asked to train {job.destination}, Replicate gave no usable answer, and its list of trainings shows none. "
            "It is not sent again, since it may cost money twice: look at replicate.com/trainings, and if there really "
            "is none, start it with --again."
        )

    def follow(self, id: str, every: float = 10.0) -> Iterator[Progress]:
        """Ask for a training's state every `every` seconds until it is over, and yield each answer."""
        shown = 0
        while True:
            training = self._send("say how far the training is", lambda: self._client.trainings.get(id))
            log = training.logs or ""
            output = training.output if isinstance(training.output, Mapping) else {}
            version = self.clean(output.get("version", ""))
            yield Progress(training.status, self.clean(log[shown:]), version, self.clean(training.error))
            shown = len(log)
            if training.status in DONE:
                return
            time.sleep(every)

    def cancel(self, id: str) -> str:
        """Stop a training, and give its state. This may be repeated."""
        return self._send("cancel the training", lambda: self._client.trainings.cancel(id)).status

    def predict(
        self, version: str, inputs: Mapping[str, Any], out: Path, every: float = 1.0, size: int = 512
    ) -> list[Path]:
        """Draw with a model: start one prediction, wait for it, and save its pictures.

        A prediction costs money, so its request is not repeated when the answer is lost.

        Args:
            version: owner/name:version, as a training gives it, or the version alone.
            inputs: such as {"prompt": ...}; a Path is a picture, and is sent as a square JPEG.
            out: the folder for the pictures.
            every: seconds between two looks at the prediction.
            size: of that square, in pixels, a multiple of 8: the size of the model's own pictures.

        Returns the paths of the pictures.

        Raises:
            ServiceError: the prediction failed, or was not started.
            LostError: it may have been started.
            ValueError: a size that no model draws.
        """
        if size < 64 or size % 8:
            raise ValueError(f"A picture of {size} x {size} pixels suits no model: give a multiple of 8, such as 512.")
        sent = {}
        for name, value in inputs.items():
            sent[name] = self._upload_square(value, size) if isinstance(value, Path) else value
        create = self._client.predictions.create
        drawing = self._send("draw", lambda: create(version=version.rpartition(":")[2], input=sent), repeatable=False)
        while drawing.status not in DONE:
            time.sleep(every)
            look = partial(self._client.predictions.get, drawing.id)
            drawing = self._send("say how far it is", look)
        if drawing.status != "succeeded":
            raise ServiceError(f"The prediction {drawing.status}: {self.clean(drawing.error) or 'no reason given'}.")
        output = drawing.output if isinstance(drawing.output, list) else [drawing.output]
        return [self._save(url, out / f"{drawing.id}-{i}") for i, url in enumerate(output) if isinstance(url, str)]

    def _upload_square(self, path: Path, size: int) -> str:
        from companion.pictures import as_jpeg, load_picture

        content = io.BytesIO(as_jpeg(load_picture(path, size).picture))
        content.name = f"{path.stem}.jpg"  # the client sends it as the file's name
        return self._upload(path.name, content)

    def _save(self, url: str, target: Path) -> Path:
        """Save the picture at `url` as `target` with the address's suffix, and give its path."""
        import httpx

        def fetch() -> httpx.Response:
            # Not through the client, which would send the token to the host that has the picture.
            answer = httpx.get(url, follow_redirects=True, timeout=60.0)
            answer.raise_for_status()
            return answer

        answer = self._send("hand out the picture", fetch)
        suffix = Path(url.partition("?")[0]).suffix or ".png"
        with written(target.with_suffix(suffix)) as temporary:
            temporary.write_bytes(answer.content)
        return target.with_suffix(suffix)
