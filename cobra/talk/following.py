"""The engine's answers in asyncio."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import replace

from cobra.models.vlms import GenerationOptions
from cobra.serving.engine import Engine
from cobra.serving.jobs import Job, Prompt, Work
from cobra.talk.conversation import Conversation, Figures, Turn


def answer_job(talk: Conversation, question: str, options: GenerationOptions, seed: int | None) -> Job:
    """Return the job of a question's answer; what is written of it becomes part of its conversation.

    Only one of a conversation may be asked of the engine at a time; what it costs is told in the conversation's
    figures.
    """
    turns: list[Turn] = []

    def make_prompt() -> Prompt:
        turn = talk.begin(question)
        turns.append(turn)
        talk.figures = Figures(talk.figures.state_bytes, read=len(turn.ids) - turn.read_ids)
        return Prompt(turn.ids, turn.pixels, turn.prefix, turn.read_ids, turn.keep_at)

    def on_end() -> None:
        row = job.rows[0]
        talk.figures.written, talk.figures.seconds = row.written, job.seconds
        for turn in turns:
            talk.end(turn, row.text, job.kept, row.finish_reason is not None)

    plain = replace(options, seeds=None, generator=None)
    job = Job(make_prompt, plain, seed or 0, on_end=on_end)
    return job


async def follow(engine: Engine, work: Work) -> AsyncGenerator[list[str], None]:
    """Ask something of the engine, and yield what is new of each answer, perhaps nothing, until it has ended.

    Whoever stops earlier, by closing the iterator or by being cancelled, ends the work.

    Raises:
        BusyError: As many wait as may.
        Exception: The work has ended early by it.
    """
    loop, event = asyncio.get_running_loop(), asyncio.Event()

    def wake() -> None:
        # The loop may have been closed, when the server ends.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(event.set)

    work.wake = wake
    engine.submit(work)
    try:
        while not work.ended:
            await event.wait()
            event.clear()
            if not work.ended:
                yield [answer.drain() for answer in work.answers]
        yield [answer.drain() for answer in work.answers]
        if work.error is not None:
            raise work.error
    finally:
        engine.cancel(work)
