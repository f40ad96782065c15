"""Rewards from a judge model or reward model behind an HTTP API.

The API key is read from the environment for each call and sent in one header only: it is in no setting, no message
and no ``repr``.  Server responses are parsed for a score and never shown, because servers may quote keys in them.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import logging
import math
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from threading import Event, Timer
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlsplit

from seedtune.config.data_and_rewards import JudgeSettings
from seedtune.config.foreign_data import found, parse_json
from seedtune.config.sections import is_secret
from seedtune.errors import ConfigError, RewardError, suggest
from seedtune.rewards.base import content_of, text_of
from seedtune.rewards.sources.adapters import rows_of

log = logging.getLogger("seedtune")

AGAIN = frozenset({408, 409, 425, 429})
"""HTTP statuses, besides 5xx, that are retried."""

LONGEST_WAIT = 60.0
"""Longest wait between two tries in seconds, even if the server asks for more."""

BACKOFF = 1.0
"""Wait before the first retry in seconds; each further wait is twice as long."""

LARGEST = 1 << 20
"""Largest response that is read, in bytes."""

REFUSED = frozenset({HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY})
"""HTTP statuses of servers that do not know a parameter, or not its value, or no provider that does (OpenRouter)."""

SIZES = frozenset({"max_tokens", "max_completion_tokens"})
PARAMETERS = SIZES | {"temperature"}
"""Parameters that some providers refuse; ``max_completion_tokens`` is sent where ``max_tokens`` is refused (OpenAI)."""

LENGTH = frozenset({"length", "max_tokens", "model_length"})
UNFINISHED = LENGTH | {"content_filter", "safety", "recitation", "error", "abort"}
"""Finish reasons of replies that are cut off: a number in them may be a part of another, or of the thinking.

Servers also say ``length`` of a whole reply that has exactly ``max_tokens`` (a digit, with 1).
"""

LONGER = "raise judge.max_tokens: a judge that thinks first needs thousands"

_THINKING = r"[<\[]{}(?:\w+:)?(?:think(?:ing)?|thought|reasoning)\|?[>\]]"
_OPENED = re.compile(r"\s*" + _THINKING.format(r"\|?(?:START_)?"), re.IGNORECASE)
_CLOSED = re.compile(_THINKING.format(r"(?:/|\|END_)"), re.IGNORECASE)
_PLACE = re.compile(r"\{([A-Za-z_]\w*)\}")
_NUMBER = re.compile(r"(?<![\w.])(?<!\d,)-?\d+(?:\.\d+)?(?!\w|[.,]\d)")
"""A whole number or decimal, never a part of another (8,5; 1.2.3; 8.5pts)."""

_OUT_OF = re.compile(r"(?:/|\bout of\b)\s*\d+(?:\.\d+)?")
_ALONE = rf"(-?\d+(?:\.\d+)?)\s*(?:{_OUT_OF.pattern})?[\s*]*\Z"
"""A reply that is nothing but a number, or 8/10."""

_TOO_LONG = re.compile(r"context ?(?:length|window)|too (?:large|long)")
"""Texts of servers that refuse a size for this one prompt, not the parameter."""


class Failure(Exception):  # noqa: N818 - not an error of ours: the sample is not scored
    """A request that returned no score; ``again``: a retry may succeed, after ``wait`` seconds if given.

    ``refusal`` is the response of a server that refused the request, which is never shown.
    """

    def __init__(self, why: str, *, again: bool = False, wait: float | None = None, refusal: str = "") -> None:
        super().__init__(why)
        self.again, self.wait, self.refusal = again, wait, refusal


class Judge:
    """A reward function with TRL's signature; returns None for completions that could not be scored.

    Raises ConfigError for an invalid URL and for an API key that is missing from the environment.
    """

    def __init__(self, settings: JudgeSettings) -> None:
        self.settings = settings
        self.address = _address(settings)
        self._refused: frozenset[str] = frozenset()
        if _key(settings) is not None and self.address.scheme == "http" and not _is_here(self.address.hostname or ""):
            log.warning(
                "%s: the key in %s goes over the network unencrypted, for anyone on the way to read; use https",
                *(self, settings.api_key_env),
            )

    def __repr__(self) -> str:
        return f"Judge({self.address._replace(query='').geturl()!r}, model={self.settings.model!r})"

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]
    ) -> list[float | None]:
        """Return a score or None per completion; at most ``concurrency`` requests are in flight."""
        rows = rows_of(columns, len(completions))
        bodies = [self.body(p, text_of(c), row) for p, c, row in zip(prompts, completions, rows, strict=True)]
        key, stopped = _key(self.settings), Event()
        pool = ThreadPoolExecutor(min(self.settings.concurrency, max(1, len(bodies))))
        try:
            answers = list(pool.map(lambda body: self._score(body, key, stopped), bodies))
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)
        reasons = [answer for answer in answers if isinstance(answer, str)]
        if reasons:
            log.warning("%s: %d of %d not scored; the first: %s", self, len(reasons), len(answers), reasons[0])
        return [None if isinstance(answer, str) else answer for answer in answers]

    def body(self, prompt: Any, completion: str, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return one request's body; raise RewardError if the template names an unknown column."""
        known, settings = {**row, "prompt": _shown(prompt), "completion": completion}, self.settings
        if settings.kind == "reward":
            return known
        asked = _PLACE.sub(lambda found: _filled(found[1], known), settings.prompt)
        messages = [{"role": "user", "content": asked}]
        if settings.system is not None:
            messages.insert(0, {"role": "system", "content": settings.system})
        sizes = {"max_tokens": settings.max_tokens, "temperature": settings.temperature}
        return {"model": settings.model, "messages": messages, **sizes}

    def _score(self, body: dict[str, Any], key: str | None, stopped: Event) -> float | str:
        """Return the score, or the reason why there is none."""
        for attempt in range(self.settings.retries + 1):
            try:
                return self._score_of_answer(self._asked(body, key))
            except Failure as failure:
                if not failure.again or attempt == self.settings.retries:
                    return f"{failure} ({attempt + 1} of {self.settings.retries + 1} tries)"
                wait = BACKOFF * 2**attempt if failure.wait is None else failure.wait
                if stopped.wait(min(wait, LONGEST_WAIT)):
                    return "stopped"
        raise AssertionError("the last try returns")

    def _asked(self, body: dict[str, Any], key: str | None) -> bytes:
        """Return the server's response to a body, sent again without the parameters that the server refuses by name."""
        refused = lasting = self._refused
        while True:
            sent = body if self.settings.kind == "reward" else _without(body, refused)
            try:
                answer = request(self.address, json.dumps(sent, default=str).encode(), key, self.settings.timeout)
            except Failure as failure:
                refusal = failure.refusal.lower().replace("_", "")
                named = {name for name in PARAMETERS if name in sent and name.replace("_", "") in refusal}
                if not named or self.settings.kind == "reward":
                    raise
                if named & SIZES and _TOO_LONG.search(refusal):
                    refused |= SIZES
                else:
                    refused, lasting = refused | named, lasting | named
            else:
                self._remember(lasting)
                return answer

    def _remember(self, refused: frozenset[str]) -> None:
        """Send later requests without refused parameters, and say so."""
        if refused - self._refused:
            log.warning("%s refuses %s: it is asked without", self, ", ".join(sorted(refused)))
            self._refused |= refused

    def _score_of_answer(self, answer: bytes) -> float:
        """Return the score in a chat completion, or in the whole response of a reward endpoint."""
        if self.settings.kind == "reward":
            return score_in(answer.decode("utf-8", "replace"), self.settings)
        with suppress(ValueError, LookupError, TypeError, AttributeError):
            choice = parse_json(answer)["choices"][0]
            reason, message = str(choice.get("finish_reason")).lower(), choice["message"]
            text = content_of(message) if isinstance(message["content"], str | list) else None
            if reason in UNFINISHED:
                score = _score_before_cut(text or "", self.settings) if reason in LENGTH else None
                if score is not None:
                    return score
                fix = f", max_tokens={self.settings.max_tokens}): {LONGER}" if reason in LENGTH else ")"
                raise Failure(f"the reply was cut off (finish_reason={reason}{fix}")
            if text is not None:
                return score_in(text, self.settings)
        raise Failure("the answer is not a chat completion")


def _without(body: dict[str, Any], refused: frozenset[str]) -> dict[str, Any]:
    """Return a body without refused parameters, with ``max_completion_tokens`` in place of ``max_tokens``."""
    renamed = {"max_completion_tokens": body["max_tokens"]} if "max_tokens" in refused else {}
    return {name: value for name, value in {**body, **renamed}.items() if name not in refused}


def request(address: SplitResult, body: bytes, key: str | None, timeout: float) -> bytes:
    """POST JSON and return the response body within ``timeout`` seconds, without following redirects.

    Raises Failure for connection errors, time-outs, statuses other than 200 and responses over `LARGEST` bytes.
    """
    headers = {"Content-Type": "application/json", "Accept": "application/json", "Connection": "close"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
    target = address._replace(scheme="", netloc="", path=address.path or "/").geturl()
    try:
        with closing(kind(address.hostname or "", address.port, timeout=timeout)) as connection:
            connection.connect()
            with _cut_after(connection.sock, timeout):
                connection.request("POST", target, body, headers)
                return _read(connection.getresponse())
    except TimeoutError:
        raise Failure(f"no answer in {timeout:g} s", again=True) from None
    except (OSError, http.client.HTTPException) as error:
        raise Failure(f"the connection failed ({type(error).__name__})", again=True) from None


@contextmanager
def _cut_after(sock: socket.socket, seconds: float) -> Iterator[None]:
    """Shut a socket down after ``seconds`` in total: slow trickling keeps resetting the socket's own time-out."""
    late = Event()

    def cut() -> None:
        late.set()
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)

    timer = Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if late.is_set():
            raise TimeoutError


def _read(response: http.client.HTTPResponse) -> bytes:
    """Return the body of a response; raise Failure, with the seconds of its ``Retry-After``, for other statuses."""
    if response.status != HTTPStatus.OK:
        again = response.status in AGAIN or response.status >= HTTPStatus.INTERNAL_SERVER_ERROR
        refusal = response.read(LARGEST).decode("utf-8", "replace") if response.status in REFUSED else ""
        wait = _seconds(response.getheader("Retry-After", ""))
        raise Failure(f"HTTP {response.status}", again=again, wait=wait, refusal=refusal)
    answer = response.read(LARGEST + 1)
    if len(answer) > LARGEST:
        raise Failure(f"the answer is longer than {LARGEST:,} bytes")
    return answer


def _seconds(wait: str) -> float | None:
    """Return the seconds of a ``Retry-After``, a number or a date; None for anything else."""
    with suppress(ValueError, OverflowError):
        if re.fullmatch(r"\d{1,8}(\.\d+)?", wait):
            return float(wait)
        return max(0.0, parsedate_to_datetime(wait).timestamp() - time.time())
    return None


def score_in(text: str, settings: JudgeSettings) -> float:
    """Read the score from the judge's text after its thinking; raise Failure if none is within the bounds."""
    try:
        value = float(_score_of(_after_thinking(text), settings))
    except (ValueError, TypeError, OverflowError, LookupError):
        raise Failure("no score in the answer") from None
    min_score, max_score = settings.bounds
    if not math.isfinite(value) or not min_score <= value <= max_score:
        raise Failure(f"{value:g} is not a number from {min_score:g} to {max_score:g}")
    return value


def _score_before_cut(text: str, settings: JudgeSettings) -> float | None:
    """Return the score that a cut-off reply begins with, after its thinking; None if it may be a part of another.

    Thinking that began in the prompt has no mark, so a score further on may be a thought.
    """
    try:
        text = _after_thinking(text)
        if settings.json_field is None:
            pattern = rf"\A[\s*#]*(?:{settings.pattern or _ALONE})"
            settings = settings.model_copy(update={"pattern": pattern})
        elif not text.lstrip().startswith(("{", "```")):
            return None
        score = score_in(text, settings)
    except Failure:
        return None
    with suppress(Failure):  # 1 may be the beginning of 10; 7 and another digit are out of bounds
        return score if score_in(f"{text}0", settings) == score else None
    return score


def _after_thinking(text: str) -> str:
    """Return what follows the last end of a thinking model's thoughts; raise Failure if they do not end."""
    if text.lstrip().startswith("{"):  # JSON, which may quote such a mark
        return text
    ends = [found.end() for found in _CLOSED.finditer(text)]
    if not ends and _OPENED.match(text):
        raise Failure(f"the judge's thinking was cut off: {LONGER}")
    return text[ends[-1] :] if ends else text


def _score_of(text: str, settings: JudgeSettings) -> Any:
    """Return the last number, the last match of the pattern, or a field of the JSON object between the outer braces."""
    if settings.pattern is not None:
        return found(settings.pattern, text)[-1]
    if settings.json_field is None:
        return _NUMBER.findall(_OUT_OF.sub(" ", text))[-1]
    value = parse_json(text[text.index("{") : text.rindex("}") + 1])[settings.json_field]
    if isinstance(value, bool):
        raise TypeError
    return value


def _filled(name: str, known: Mapping[str, Any]) -> str:
    if name not in known:
        raise RewardError(
            f"the judge's prompt has {{{name}}}, which is not a column of the data.{suggest(name, known)} "
            f"Known: {', '.join(sorted(known))}."
        )
    value = known[name]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _shown(prompt: Any) -> str:
    """Format a prompt as text; several messages are prefixed with their roles."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return text_of(prompt)
    return "\n\n".join(f"{message['role']}: {content_of(message)}" for message in prompt)


def _address(settings: JudgeSettings) -> SplitResult:
    """Return the URL of requests; raise ConfigError, without repeating a URL that holds a password."""
    try:
        parts = urlsplit(settings.base_url)
        parts.port  # noqa: B018 - raises for an invalid port
    except ValueError:
        parts = urlsplit("")
    if parts.username or parts.password or any(name == "key" or is_secret(name) for name, _ in parse_qsl(parts.query)):
        raise ConfigError(
            "judge.base_url holds a name, password or key. Put the key into the environment and name it in api_key_env."
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"judge.base_url={settings.base_url!r} is not an address. Write, say, http://localhost:8000/v1"
        )
    path = parts.path.rstrip("/")
    whole = settings.kind == "reward" or path.endswith("/chat/completions")
    return parts._replace(path=path if whole else f"{path}/chat/completions", fragment="")


def _is_here(host: str) -> bool:
    """Return whether a host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _key(settings: JudgeSettings) -> str | None:
    """Return the API key; raise ConfigError, which never repeats it, if it is missing or not valid in a header."""
    if settings.api_key_env is None:
        return None
    key = os.environ.get(settings.api_key_env, "").strip()
    if not key:
        raise ConfigError(
            f"judge.api_key_env={settings.api_key_env!r}: there is no such environment variable. Export it first."
        )
    if not all("!" <= letter <= "~" for letter in key):
        raise ConfigError(
            f"judge.api_key_env={settings.api_key_env!r}: the variable holds more than a key (blanks, line ends)."
        )
    return key
