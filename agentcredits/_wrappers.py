"""One wrapper for each colour of function, written out, so that ``inspect`` sees in it what it saw in the function.

The shape is always the same: admit, begin, the body in its surroundings, succeed or fail, end. What a function or
coroutine hands back is the call's to say: ``succeed`` gives it, ``fail`` may give something (in a tuple) for the error.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from typing import Any

from agentcredits._call import Bare
from agentcredits._meter import MARK, Meter


def wrap(meter: Meter) -> Callable[..., Any]:
    """The function that is called instead of the meter's own; of the same colour, carrying the meter."""
    makers: dict[str, Callable[[Meter], Callable[..., Any]]] = {
        "function": _function,
        "coroutine": _coroutine,
        "generator": _generator,
        "async generator": _async_generator,
    }
    wrapper = makers[meter.colour](meter)
    functools.update_wrapper(wrapper, meter.function)
    setattr(wrapper, MARK, meter)
    return wrapper


def _function(meter: Meter) -> Callable[..., Any]:
    function = meter.function

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        call = meter.call(args, kwargs)
        if call is None:
            return function(*args, **kwargs)
        plan = call.admit()
        if plan is not None:
            return call.fallback(plan)
        try:
            try:
                call.begin()
                with call.surroundings:
                    result = function(*args, **kwargs)
            except BaseException as error:
                instead = call.fail(error)
                if instead is None:
                    raise
                return instead[0]
            return call.succeed(result)
        finally:
            call.end()

    return wrapper


def _coroutine(meter: Meter) -> Callable[..., Any]:
    function = meter.function

    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        call = meter.call(args, kwargs)
        if call is None:
            return await function(*args, **kwargs)
        plan = await call.aadmit()
        if plan is not None:
            return await call.afallback(plan)
        try:
            try:
                call.begin()
                with call.surroundings:
                    result = await function(*args, **kwargs)
            except GeneratorExit:
                # Nobody drives this coroutine any more, so it cannot wait: end() gives back without waiting.
                raise
            except BaseException as error:
                instead = await call.afail(error)
                if instead is None:
                    raise
                return instead[0]
            return await call.asucceed(result)
        finally:
            call.end()

    return wrapper


def _generator(meter: Meter) -> Callable[..., Any]:
    function = meter.function

    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        call = meter.call(args, kwargs)
        if call is None:
            return (yield from function(*args, **kwargs))
        plan = call.admit()
        if plan is not None:
            yield call.fallback(plan)
            return None
        try:
            try:
                call.begin()
                inner: Generator[Any, Any, Any] = function(*args, **kwargs)
                resume: Callable[[], Any] = inner.__next__
                result: Any = None
                while True:
                    with call.surroundings:
                        try:
                            item = resume()
                        except StopIteration as stop:
                            result = stop.value
                            break
                    call.items += 1
                    try:
                        sent = yield item
                    except GeneratorExit:
                        call.closed_early()
                        with call.surroundings:
                            inner.close()
                        raise
                    except BaseException as thrown:  # noqa: BLE001  # whatever the consumer throws is the body's
                        resume = functools.partial(inner.throw, thrown)
                    else:
                        resume = functools.partial(inner.send, sent)
            except BaseException as error:
                call.fail(error)
                raise
            call.succeed(result)
            return result
        finally:
            call.end()

    return wrapper


def _async_generator(meter: Meter) -> Callable[..., Any]:
    function = meter.function

    async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        call = meter.call(args, kwargs) or Bare()
        plan = await call.aadmit()
        if plan is not None:
            yield await call.afallback(plan)
            return
        try:
            try:
                call.begin()
                inner: AsyncGenerator[Any, Any] = function(*args, **kwargs)
                resume: Callable[[], Awaitable[Any]] = inner.__anext__
                while True:
                    with call.surroundings:
                        try:
                            item = await resume()
                        except StopAsyncIteration:
                            break
                    call.items += 1
                    try:
                        sent = yield item
                    except GeneratorExit:
                        # First: closing the body may never come back when the event loop is gone.
                        call.closed_early()
                        with call.surroundings:
                            await inner.aclose()
                        raise
                    except BaseException as thrown:  # noqa: BLE001  # whatever the consumer throws is the body's
                        resume = functools.partial(inner.athrow, thrown)
                    else:
                        resume = functools.partial(inner.asend, sent)
            except GeneratorExit:
                # Closed, or dropped in the middle of a step: nothing can be waited for, end() does what is left.
                raise
            except BaseException as error:
                await call.afail(error)
                raise
            await call.asucceed(None)
        finally:
            call.end()

    return wrapper
