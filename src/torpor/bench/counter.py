"""Asking instances of an application that counts: examples/bun-counter and what answers like it."""

import asyncio
import time
from dataclasses import dataclass

import msgspec

from torpor.bench.audit import Audit
from torpor.bench.http import Answer, Client, LostError

PATIENCE_S = 60.0
PAUSE_S = 0.1


class NoAnswerError(Exception):
    """An instance did not answer as its program does."""


class Count(msgspec.Struct):
    """The answer of a counter."""

    instance: str
    count: int


_count = msgspec.json.Decoder(Count)


@dataclass(slots=True)
class Counters:
    """All instances of a run by their number, behind one proxy."""

    proxy: Client
    audit: Audit
    name: str
    """Beginning of their names, before the number."""
    suffix: str
    faults: bool = False
    """Whether processes are killed meanwhile: requests may be lost, and 502 may be answered."""
    lost: int = 0
    refused: int = 0
    """Answers with status 503, each of which was asked again."""

    def name_of(self, index: int) -> str:
        """Name of an instance, and its host name before the suffix."""
        return f"{self.name}-{index}"

    async def ask(self, index: int, *, counts: bool = True) -> float:
        """One request and its verdict; the seconds that the answer took.

        An answer of 503 is asked again, as Retry-After wants it. Raises NoAnswerError.
        """
        host = f"{self.name_of(index)}.{self.suffix}"
        request = self.proxy.encode("GET", "/" if counts else "/peek", host=host)
        ends_s = time.monotonic() + PATIENCE_S
        while True:
            self.audit.asks(index, counts=counts)
            try:
                answer = await self.proxy.send(request)
            except LostError as error:
                self.lost += 1
                if not self.faults or time.monotonic() > ends_s:
                    raise NoAnswerError(f"{host}: {error}") from error
            else:
                if answer.status == 200:
                    self._judge(index, host, answer, counts=counts)
                    return answer.took_s
                if answer.status == 503:
                    self.refused += 1
                    if counts:
                        self.audit.refused(index)
                again = answer.status == 503 or (answer.status == 502 and self.faults)
                if not again or time.monotonic() > ends_s:
                    text = answer.body[:200].decode(errors="replace")
                    raise NoAnswerError(f"{host}: answered {answer.status}: {text}")
            await asyncio.sleep(PAUSE_S)

    def _judge(self, index: int, host: str, answer: Answer, *, counts: bool) -> None:
        try:
            found = _count.decode(answer.body)
        except msgspec.MsgspecError as error:
            raise NoAnswerError(f"{host}: no counter's answer: {answer.body[:200]!r}") from error
        self.audit.answered(index, found.instance, found.count, counted=counts)
