"""DreamBooth on Replicate: pictures in a zip, one training, and pictures of your subject back.

Two halves. The first says what the pictures become and what each request will be: it needs no account, and no package
beyond the course's. The second sends those requests through Replicate's own client (the extra `[replicate]`). It knows
which request may be sent twice: a training costs money, so that one is sent once, whatever happens to the answer.

    fields = {"instance_data": Path("me.zip"), "instance_prompt": "a photo of an oscvtr doctor", ...}
    job = Job("owner/trainer:version", "you/model", fields)
    for request in rehearsal(job): print(request)     # nothing is sent
    service = Service(read_token()); service.start(job)
"""

from __future__ import annotations

import difflib
import getpass
import hashlib
import io
import json
import os
import re
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

import companion
from companion.files import sha256, written

T = TypeVar("T")

#: Where the token is looked for, and nowhere else.
TOKEN = "REPLICATE_API_TOKEN"
#: A training or prediction in one of these states changes no more.
DONE = ("succeeded", "failed", "canceled", "aborted")
#: What Stable Diffusion 1.x learns from, and what its img2img begins with, in pixels.
SIZE = 512
PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


# ---- Pictures --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Packed:
    """A zip of training pictures: where it is, how many it holds, and those that had to be enlarged."""

    path: Path
    count: int
    enlarged: tuple[str, ...] = ()


def square(path: Path, size: int = SIZE) -> bytes:
    """A picture as a JPEG of `size` x `size`: turned upright, its middle cut out, without the camera's notes (EXIF).

    Raises ValueError for a file that is no picture.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGBA")
    except (UnidentifiedImageError, OSError) as error:
        reason = str(error).replace(str(path), path.name)
        raise ValueError(f"{path.name} cannot be read as a picture ({reason}): take it out of the folder.") from None
    paper = Image.new("RGBA", upright.size, "white")
    flat = Image.alpha_composite(paper, upright).convert("RGB")
    buffer = io.BytesIO()
    ImageOps.fit(flat, (size, size), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def pack(folder: Path, target: Path, size: int = SIZE) -> Packed:
    """Zip a folder's pictures as trainers want them: JPEG, square, all of one size, under names that say nothing.

    The same pictures always give the same bytes. Raises ValueError when there is no picture, or one cannot be read.
    """
    from PIL import Image

    folder = Path(folder)
    found = sorted(p for p in folder.glob("*") if p.suffix.lower() in PICTURES and not p.name.startswith("."))
    if not found:
        kinds = ", ".join(sorted(PICTURES))
        raise ValueError(f"{folder} holds no picture; a folder with some of these is needed: {kinds}.")
    enlarged = []
    with written(Path(target)) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for number, path in enumerate(found):
            data = square(path, size)
            with Image.open(path) as image:
                if min(image.size) < size:
                    enlarged.append(path.name)
            archive.writestr(zipfile.ZipInfo(f"{number:03}.jpg", (1980, 1, 1, 0, 0, 0)), data)
    return Packed(Path(target), len(found), tuple(enlarged))


def rare_word(instance_prompt: str, class_prompt: str) -> str:
    """The word that will mean the subject: what the first prompt has and the second has not, articles aside.

    Raises ValueError unless that is one word.
    """
    words, common = re.findall(r"\w+", instance_prompt), set(re.findall(r"\w+", class_prompt))
    rare = list(dict.fromkeys(w for w in words if w not in common | {"a", "an", "the"}))
    if len(rare) != 1:
        found = f"differ by {', '.join(rare)}" if rare else "say the same"
        raise ValueError(
            f"{instance_prompt!r} and {class_prompt!r} {found}; they must differ by the one rare word of the subject, "
            "as 'a photo of an oscvtr doctor' and 'a photo of a doctor' do."
        )
    return rare[0]


# ---- The fields: of 2022, and of today -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Field:
    """A field of the 2022 endpoint's `input`, and its names in today's trainers; the first that is known counts."""

    name: str
    today: tuple[str, ...]
    about: str


FIELDS = (
    Field(
        "instance_prompt",
        ("instance_prompt", "caption_prefix", "autocaption_prefix"),
        "a sentence that holds the rare word",
    ),
    Field("class_prompt", ("class_prompt",), "the same sentence without it: what must not drift"),
    Field("instance_data", ("instance_data", "input_images"), "a zip of the subject's pictures"),
    Field("class_data", ("class_data",), "a zip of pictures of other members of the class"),
    Field("num_class_images", ("num_class_images",), "how many of those there shall be; the trainer draws the rest"),
    Field("max_train_steps", ("max_train_steps", "steps"), "steps of the optimiser"),
    Field("train_text_encoder", ("train_text_encoder",), "whether the text encoder learns too"),
    Field("scale_lr", ("scale_lr",), "multiply the learning rate by the batch size"),
    Field("lr_scheduler", ("lr_scheduler",), "how the learning rate changes over the steps"),
    Field("lr_warmup_steps", ("lr_warmup_steps",), "steps in which it rises from 0"),
)
#: What stood beside `input` in 2022, and where it is said today.
BESIDE = {
    "model": "destination",
    "trainer_version": "the version in the request's address",
    "webhook_completed": 'webhook, with webhook_events_filter ["completed"]',
}
#: Where the rare word goes, in trainers that want it by itself.
RARE_WORD = ("token_string", "trigger_word")

#: Inputs of three trainers, as their published source has them, to rehearse with. (A real training asks Replicate.)
TRAINERS: dict[str, dict[str, dict[str, Any]]] = {
    "replicate/dreambooth": {
        "instance_prompt": {"type": "string"},
        "class_prompt": {"type": "string"},
        "instance_data": {"type": "string", "format": "uri"},
        "class_data": {"type": "string", "format": "uri"},
        "num_class_images": {"type": "integer"},
        "max_train_steps": {"type": "integer"},
        "train_text_encoder": {"type": "boolean"},
        "scale_lr": {"type": "boolean"},
        "lr_scheduler": {"type": "string"},
        "lr_warmup_steps": {"type": "integer"},
    },
    "stability-ai/sdxl": {
        "input_images": {"type": "string", "format": "uri"},
        "max_train_steps": {"type": "integer"},
        "lr_scheduler": {"type": "string", "enum": ["constant", "linear"]},
        "lr_warmup_steps": {"type": "integer"},
        "token_string": {"type": "string"},
        "caption_prefix": {"type": "string"},
    },
    "ostris/flux-dev-lora-trainer": {
        "input_images": {"type": "string", "format": "uri"},
        "trigger_word": {"type": "string"},
        "autocaption_prefix": {"type": "string"},
        "steps": {"type": "integer", "minimum": 3, "maximum": 6000},
    },
}


@dataclass(frozen=True)
class Translation:
    """Fields of 2022 in a trainer's own words: `input` for it, `names` old to new, `dropped` with no place there."""

    input: dict[str, Any]
    names: dict[str, str]
    dropped: tuple[str, ...]


def translate(fields: Mapping[str, Any], schema: Mapping[str, Mapping[str, Any]]) -> Translation:
    """Say the fields of 2022 in the words of a trainer whose inputs are `schema` (the `properties` of its OpenAPI).

    A name that is no field of 2022 is taken as the trainer's own. Raises ValueError for a name that neither knows, for
    a value that the trainer would refuse, and when the trainer takes no pictures.
    """
    known = {f.name: f.today for f in FIELDS}
    names: dict[str, str] = {}
    dropped = []
    for name in fields:
        new = next((n for n in known.get(name, (name,)) if n in schema), None)
        if new:
            names[name] = new
        elif name in known:
            dropped.append(name)
        else:
            near = difflib.get_close_matches(name, [*known, *schema], n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"There is no field {name!r}; {hint}This trainer has {', '.join(schema)}.")
    if "instance_data" not in names:
        raise ValueError(f"This trainer takes no zip of pictures; its inputs are {', '.join(schema)}.")
    ready = {new: _fitting(old, fields[old], schema[new]) for old, new in names.items()}
    wanted = next((n for n in RARE_WORD if n in schema and n not in ready), None)
    if wanted and {"instance_prompt", "class_prompt"} <= set(fields):
        ready[wanted] = rare_word(fields["instance_prompt"], fields["class_prompt"])
    return Translation(ready, names, tuple(dropped))


def _fitting(name: str, value: Any, schema: Mapping[str, Any]) -> Any:
    """The value in the trainer's type. (In 2022 truth values were sent as "true" and "false".)"""
    kind = schema.get("type")
    if kind == "boolean" and isinstance(value, str):
        if value.lower() not in ("true", "false"):
            raise ValueError(f"{name}={value!r} is neither true nor false.")
        value = value.lower() == "true"
    if kind in ("integer", "number"):
        try:
            value = int(value) if kind == "integer" else float(value)
        except (TypeError, ValueError):
            raise ValueError(f"{name}={value!r} is no number, and the trainer wants one.") from None
        low, high = schema.get("minimum", -float("inf")), schema.get("maximum", float("inf"))
        if not low <= value <= high:
            raise ValueError(f"{name}={value} is outside {low:g} to {high:g}, which the trainer takes.")
    if "enum" in schema and value not in schema["enum"]:
        raise ValueError(f"{name}={value!r} is unknown to the trainer; it takes {', '.join(map(str, schema['enum']))}.")
    return value


# ---- The requests ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One training: `trainer` as owner/name:version, `destination` as owner/name, `fields` in the words of 2022.

    A Path among the fields is a file to upload. `webhook` is called by Replicate when the training is over.
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
        for path in self.files.values():
            if not path.is_file():
                raise ValueError(f"{path} is not there; `companion replicate zip` makes it.")

    @property
    def name(self) -> str:
        """The trainer without its version."""
        return self.trainer.partition(":")[0]

    @property
    def address(self) -> str:
        """Where its training is asked for."""
        return f"/v1/models/{self.name}/versions/{self.trainer.partition(':')[2]}"

    @property
    def files(self) -> dict[str, Path]:
        """The fields that are files."""
        return {name: value for name, value in self.fields.items() if isinstance(value, Path)}

    def body(self, translation: Translation, urls: Mapping[str, str]) -> dict[str, Any]:
        """The body of the one request that costs money; `urls` says where each uploaded file lies."""
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
        """Equal for equal jobs: the same trainer, destination, numbers and bytes of pictures."""
        said = {k: sha256(v) if isinstance(v, Path) else v for k, v in sorted(self.fields.items())}
        return hashlib.sha256(json.dumps([self.trainer, self.destination, said]).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Request:
    """A request as it would be sent; `again` says whether it may be sent twice."""

    method: str
    path: str
    why: str
    body: Any = None
    upload: str = ""
    again: bool = True

    def __str__(self) -> str:
        lines = [f"{self.method} {self.path}", f"    {self.why}; {'may be repeated' if self.again else 'SENT ONCE'}"]
        if self.upload:
            lines.append(f"    {self.upload}")
        if self.body is not None:
            lines += ["    " + line for line in json.dumps(self.body, indent=2).splitlines()]
        return "\n".join(lines)


def rehearsal(
    job: Job, schema: Mapping[str, Mapping[str, Any]] | None = None, prompt: str = "a photo of ..."
) -> Iterator[Request]:
    """Every request of a training and of a first picture, in order, without sending any. A test proves them equal.

    Args:
        schema: the trainer's inputs; those of `TRAINERS` when left out.

    Raises ValueError for a trainer that is not among them, and where `translate` does.
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
    yield Request("POST", f"{job.address}/trainings", "start the training, which costs money", body, again=False)
    yield Request("GET", "/v1/trainings/<id>", "how far is it? asked until it is over")
    drawing = {"version": "<new version>", "input": {"prompt": prompt}}
    yield Request("POST", "/v1/predictions", "a picture by the new model, which costs a little", drawing, again=False)
    yield Request("GET", "/v1/predictions/<id>", "is it drawn?")
    yield Request("POST", "/v1/trainings/<id>/cancel", "to stop a training that goes wrong")


# ---- Sending them ----------------------------------------------------------------------------------------------------


class ServiceError(ValueError):
    """Replicate refused, or cannot be reached; nothing was started."""


class LostError(ServiceError):
    """A request was sent, and it is not known what became of it."""


def read_token() -> str:
    """The token: from the environment, else asked for without showing it. It is not kept anywhere.

    Raises ValueError when there is none, or when it cannot be one; the message does not hold it.
    """
    token = os.environ.get(TOKEN, "").strip()
    if not token and sys.stdin is not None and sys.stdin.isatty():
        token = getpass.getpass("Replicate token (it is not shown): ").strip()
    if not token:
        raise ValueError(f"There is no token: set {TOKEN}; replicate.com/account/api-tokens makes one.")
    if not re.fullmatch(r"[\x21-\x7e]+", token):  # else the HTTP library would name it in its own error
        raise ValueError(f"{TOKEN} holds spaces or signs that no token has: copy it again.")
    return token


@dataclass
class Receipt:
    """What is known on this machine of one job's training, so that a second call does not start a second one.

    `state` is "sent" from just before the request until its answer, then "started". It holds no token.
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
        """Note that the request is about to leave. Raises FileExistsError if another process was quicker."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.state, self.input = "sent", dict(body["input"])
        with self.path.open("x", encoding="utf-8") as file:
            file.write(self._text())

    def started(self, id: str) -> None:
        """Note the training's id."""
        self.state, self.id = "started", id
        with written(self.path) as temporary:
            temporary.write_text(self._text(), encoding="utf-8")

    def drop(self) -> None:
        """Nothing was started."""
        self.path.unlink(missing_ok=True)
        self.state = ""

    def _text(self) -> str:
        return json.dumps({"state": self.state, "id": self.id, "input": self.input}, indent=1) + "\n"


@dataclass(frozen=True)
class Progress:
    """A look at a training: its state, what its log says since the last look, and in the end its version or error."""

    status: str
    log: str = ""
    version: str = ""
    error: str = ""


class Service:
    """Replicate, through its own client.

    Args:
        token: see `read_token`; no text that leaves this object holds it.
        base_url: another address, for tests; REPLICATE_BASE_URL does the same.
        timeout: seconds to wait for an answer.
        tries: how often a request is sent that may be repeated.
        pause: seconds before the first repetition; it doubles each time.
        receipts: the folder of receipts, runs/replicate/ when left out.
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
        # The client's own repetitions are of GET and the like only, and after 429, 503 and 504.
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
        """The text without the token, should someone have put it there."""
        return str(text or "").replace(self._token, "***")

    def _send(self, what: str, call: Callable[[], T], *, again: bool = True) -> T:
        """Make one request, and repeat it where that can do no harm.

        `again=False` is for what costs money: it is repeated only when it surely was not begun, that is when no
        connection was made, or when the answer was 429, "too many requests".

        Raises ServiceError, and LostError when what was sent may have been begun.
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
                    raise ServiceError(f"Replicate refused to {what}; {problem}.{_way_out(status)}") from None
            except (ValueError, AttributeError):  # the client could not read the answer
                problem = "the answer cannot be read"
            if not again and begun:
                raise LostError(f"Asked to {what}, Replicate gave no usable answer: {problem}.") from None
            if attempt < self.tries:
                time.sleep(self._wait_for or pause)
                pause *= 2
        raise ServiceError(f"Replicate did not {what} in {self.tries} tries; {problem}. Try again later.")

    def schema(self, trainer: str) -> dict[str, dict[str, Any]]:
        """The inputs of a trainer, from Replicate: the `properties` of its OpenAPI description."""
        from replicate.version import Versions

        name, _, version = trainer.partition(":")
        versions = Versions(self._client, model=name)
        found = self._send("describe the trainer", lambda: versions.get(version)).openapi_schema
        schemas = (found or {}).get("components", {}).get("schemas", {})
        if "TrainingInput" not in schemas:
            raise ServiceError(f"{trainer} is a model that cannot be trained: name a trainer.")
        references = {f"#/components/schemas/{key}": value for key, value in schemas.items()}
        properties = schemas["TrainingInput"].get("properties", {})
        # Choices stand elsewhere in the description, and are referred to.
        return {
            key: {**value, **next((references.get(part.get("$ref"), {}) for part in value.get("allOf", [])), {})}
            for key, value in properties.items()
        }

    def make_destination(self, job: Job) -> None:
        """Make the model that the training will fill, private, unless it is there."""
        owner, name = job.destination.split("/")
        try:
            self._send("look up the destination", lambda: self._client.models.get(job.destination))
            return
        except ServiceError as error:
            if "answered 404" not in str(error):
                raise
        options = {"visibility": "private", "hardware": job.hardware}
        try:
            # Repeating is safe: a second model of one name is refused.
            self._send("make the destination", lambda: self._client.models.create(owner, name, **options))
        except ServiceError as error:
            if "answered 409" not in str(error):
                raise

    def upload(self, path: Path) -> str:
        """Upload a file, and give its address. A broken upload is begun again: it costs nothing."""
        return self._send(f"take {path.name}", lambda: self._client.files.create(path)).urls["get"]

    def start(self, job: Job, *, again: bool = False) -> str:
        """Start the job's training, once, and give its id. An equal job that was started before is not started again.

        Everything that can be refused is tried first: the trainer's inputs are checked, the destination is made and the
        files are uploaded. Then one request is sent. If its answer is lost, the list of trainings is asked whether it
        has one with the addresses of these uploads, which no other training has.

        Args:
            again: start it although an equal one was started.

        Raises:
            ServiceError: nothing was started.
            LostError: it may have been started; the message says where to look.
        """
        receipt = Receipt.of(job, self.receipts)
        if again:
            receipt.drop()
        if receipt.state == "started":
            return receipt.id
        if receipt.state == "sent":
            return self._found(receipt, job)
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
                again=False,
            )
        except LostError:
            return self._found(receipt, job)
        except ServiceError:
            receipt.drop()
            raise
        receipt.started(training.id)
        return training.id

    def _found(self, receipt: Receipt, job: Job) -> str:
        """The id of a training that was sent and not answered, from the list of trainings."""
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
        """Look at a training every so many seconds until it is over, and yield each look."""
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
        """Stop a training, and give its state. Asking twice does no harm."""
        return self._send("cancel the training", lambda: self._client.trainings.cancel(id)).status

    def predict(self, version: str, inputs: Mapping[str, Any], out: Path, every: float = 1.0) -> list[Path]:
        """Draw with a model: start one prediction, wait for it, and save its pictures in `out`.

        Args:
            version: owner/name:version, as a training gives it, or the version alone.
            inputs: such as {"prompt": ...}; a Path is a picture, and is sent as a square JPEG of 512 pixels.

        Raises ServiceError when it failed, LostError when it may have been started.
        """
        sent = {}
        for name, value in inputs.items():
            sent[name] = self._picture(value) if isinstance(value, Path) else value
        create = self._client.predictions.create
        drawing = self._send("draw", lambda: create(version=version.rpartition(":")[2], input=sent), again=False)
        while drawing.status not in DONE:
            time.sleep(every)
            look = partial(self._client.predictions.get, drawing.id)
            drawing = self._send("say how far it is", look)
        if drawing.status != "succeeded":
            raise ServiceError(f"The prediction {drawing.status}: {self.clean(drawing.error) or 'no reason given'}.")
        output = drawing.output if isinstance(drawing.output, list) else [drawing.output]
        return [self._save(url, out / f"{drawing.id}-{i}") for i, url in enumerate(output) if isinstance(url, str)]

    def _picture(self, path: Path) -> str:
        buffer = io.BytesIO(square(path))
        buffer.name = f"{path.stem}.jpg"
        return self._send(f"take {path.name}", lambda: self._client.files.create(buffer)).urls["get"]

    def _save(self, url: str, target: Path) -> Path:
        import httpx

        def fetch() -> httpx.Response:
            # Not through the client: it would show the token to whatever host the picture lies on.
            answer = httpx.get(url, follow_redirects=True, timeout=60.0)
            answer.raise_for_status()
            return answer

        answer = self._send("hand out the picture", fetch)
        suffix = Path(url.partition("?")[0]).suffix or ".png"
        with written(target.with_suffix(suffix)) as temporary:
            temporary.write_bytes(answer.content)
        return target.with_suffix(suffix)


def _way_out(status: int) -> str:
    ways = {
        401: f" Make a new token at replicate.com/account/api-tokens, and set {TOKEN}.",
        402: " See replicate.com/account/billing.",
        403: " Is the destination yours?",
        404: " Check the owner, the name and the version.",
    }
    return ways.get(status, "")


# ---- The command -----------------------------------------------------------------------------------------------------

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def _about() -> None:
    """Train a DreamBooth on Replicate, and draw with it. The token is read from REPLICATE_API_TOKEN, or asked for."""


@app.command("zip")
def _zip(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="A folder of pictures.")],
    target: Annotated[Path, typer.Argument(help="The zip to write.")],
    size: Annotated[int, typer.Option(min=64, max=2048, help="Width and height in pixels.")] = SIZE,
) -> None:
    """Make a zip of square JPEGs."""
    packed = pack(folder, target, size)
    typer.echo(f"{packed.path}: {packed.count} pictures of {size} x {size}, {packed.path.stat().st_size:,} bytes")
    if packed.enlarged:
        typer.echo(f"Smaller than that, and enlarged: {', '.join(packed.enlarged)}")


@app.command("train")
def _train(
    trainer: Annotated[str, typer.Option(help="owner/name:version, from the trainer's page.")],
    destination: Annotated[str, typer.Option(help="owner/name of your model; it is made if it is not there.")],
    instance_data: Annotated[Path, typer.Option(help="Zip of your subject (see `companion replicate zip`).")],
    instance_prompt: Annotated[str, typer.Option(help="Such as 'a photo of an oscvtr doctor'.")],
    class_prompt: Annotated[str, typer.Option(help="The same without the rare word: 'a photo of a doctor'.")],
    class_data: Annotated[Path | None, typer.Option(help="Zip of others of its class.")] = None,
    max_train_steps: Annotated[int, typer.Option(min=1)] = 1000,
    num_class_images: Annotated[int | None, typer.Option(min=0)] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any other field.")] = None,
    webhook: Annotated[str, typer.Option(help="An https address to call when it is over.")] = "",
    hardware: Annotated[str, typer.Option(help="What a new destination runs on.")] = "gpu-t4",
    again: Annotated[bool, typer.Option(help="Start it although an equal one was started.")] = False,
    yes: Annotated[bool, typer.Option(help="Do not ask before spending money.")] = False,
    dry_run: Annotated[bool, typer.Option(help="Show each request, and send none.")] = False,
) -> None:
    """Start a training, once, and follow it to its end."""
    fields: dict[str, Any] = {"instance_prompt": instance_prompt, "class_prompt": class_prompt}
    fields |= {"instance_data": instance_data, "max_train_steps": max_train_steps}
    fields |= {"class_data": class_data} if class_data else {}
    fields |= {"num_class_images": num_class_images} if num_class_images is not None else {}
    for item in set_ or []:
        name, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"--set {item!r} is not NAME=VALUE, such as lr_scheduler=linear.")
        fields[name] = value
    job = Job(trainer, destination, fields, webhook, hardware)
    if dry_run:
        for request in rehearsal(job):
            typer.echo(request)
        return
    service = Service(read_token())
    translation = translate(job.fields, service.schema(job.trainer))
    for name in translation.dropped:
        typer.echo(f"{name}: this trainer has no place for it, so it is left out.")
    if not yes:
        typer.confirm(f"Start a training of {destination}? It costs money", abort=True)
    id = service.start(job, again=again)
    typer.echo(f"Training {id}. Ctrl-C only stops watching; `companion replicate cancel {id}` stops the training.")
    _watch(service, id)


@app.command("follow")
def _follow(id: Annotated[str, typer.Argument(help="A training's id.")]) -> None:
    """Watch a training to its end."""
    _watch(Service(read_token()), id)


def _watch(service: Service, id: str) -> None:
    progress = Progress("")
    for progress in service.follow(id):
        if progress.log:
            typer.echo(progress.log.rstrip("\n"))
    typer.echo(f"Training {id} {progress.status}. {progress.error or progress.version}".rstrip())
    raise typer.Exit(int(progress.status != "succeeded"))


@app.command("cancel")
def _cancel(id: Annotated[str, typer.Argument(help="A training's id.")]) -> None:
    """Stop a training."""
    typer.echo(f"Training {id}: {Service(read_token()).cancel(id)}")


@app.command("predict")
def _predict(
    version: Annotated[str, typer.Argument(help="owner/name:version, as the training gave it.")],
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    image: Annotated[Path | None, typer.Option(exists=True, help="A picture to begin with (img2img).")] = None,
    out: Annotated[Path, typer.Option(help="A folder for the pictures.")] = Path("."),
) -> None:
    """Draw with a model that was trained."""
    inputs: dict[str, Any] = {"prompt": prompt} | ({"image": image} if image else {})
    for path in Service(read_token()).predict(version, inputs, out):
        typer.echo(path)
