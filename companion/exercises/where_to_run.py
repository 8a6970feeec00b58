"""The exercises of notebook 07: the memory of a training, requests that may be repeated, and what a GPU costs."""

from __future__ import annotations

from companion.exercises.machinery import Answer, Wrong, register, returned

NOTEBOOK = "07_where_to_run"


def _test_training_bytes(training_bytes: Answer) -> str:
    learns, stays = 1_000, 10_000
    found = returned(training_bytes(learns, stays))
    if training_bytes(0, stays) == 4 * stays:
        raise Wrong("numbers that do not learn can be kept in half precision: two bytes each")
    if training_bytes(0, stays) != 2 * stays:
        raise Wrong(f"with {stays} numbers that stay and none that learns it is {2 * stays} bytes, two for each")
    share = (found - 2 * stays) / learns
    if share == 12:
        raise Wrong("12 bytes for each number that learns: Adam keeps two moments, not one")
    if share == 8:
        raise Wrong("8 bytes for each number that learns: itself and its gradient, but Adam keeps two moments more")
    if share == 18:
        raise Wrong("18 bytes for each number that learns: it is either learning or staying, not both")
    if share != 16:
        raise Wrong(f"{share:g} bytes for each number that learns: it, its gradient and two moments take 4 bytes each")
    return "16 bytes for each number that learns, 2 for each that stays: that is why adapters fit where models do not."


@register(NOTEBOOK, _test_training_bytes)
def training_bytes(learns, stays):
    """Bytes for `learns` numbers taught by Adam in single precision, and `stays` numbers at rest in half precision."""
    return 16 * learns + 2 * stays


def _test_may_repeat(may_repeat: Answer) -> str:
    cases = [
        (False, "broken off", True, "asking how far a training is costs nothing, so ask again"),
        (False, 500, True, "a server's own error (500) may be gone next time, and nothing is at stake"),
        (False, "no connection", True, "without a connection the question was never asked, so ask again"),
        (True, "broken off", False, "it may have been started before the line broke: a second one is paid too"),
        (True, 500, False, "after a 500 nobody knows whether the training was started"),
        (True, 503, False, "after a 503 nobody can be sure either: every 5xx leaves it open"),
        (True, "no connection", True, "without a connection nothing was sent, so nothing can have been started"),
        (True, 429, True, "429 means that the request was turned away at the door: nothing was started"),
        (False, 429, True, "429 only asks for patience"),
        (True, 422, False, "422 says that the request is wrong, and it will be as wrong the second time"),
        (False, 422, False, "422 says that the question is wrong, and it will be as wrong the second time"),
        (False, 404, False, "404 says that there is no such thing, and asking again does not make it"),
        (False, 401, False, "401 says that the token is wrong, and it will be as wrong the second time"),
    ]
    for paid, outcome, wanted, why in cases:
        found = returned(may_repeat(paid, outcome))
        if bool(found) != wanted:
            raise Wrong(f"may_repeat({paid}, {outcome!r}) should be {wanted}: {why}")
    return "free questions may be repeated unless they are wrong; paid ones only when they surely were not begun."


@register(NOTEBOOK, _test_may_repeat)
def may_repeat(paid, outcome):
    """Whether a request may be sent again. `outcome` is "no connection", "broken off", or the status it was given."""
    if outcome in ("no connection", 429):
        return True
    if paid:
        return False
    return outcome == "broken off" or outcome >= 500


def _test_break_even(break_even: Answer) -> str:
    found = returned(break_even(0.40, 0.0002, 5.0))
    if abs(found - 2000) < 1e-6:
        raise Wrong("those are seconds of work in an hour: divide by the seconds of one picture")
    if abs(found - 0.40 / (0.0002 * 3600 * 5)) < 1e-6:
        raise Wrong("the price is for a second already, so 3600 has no place here")
    if abs(found - 400) > 1e-6:
        raise Wrong(
            f"at $0.40 an hour, $0.0002 a second and 5 s a picture it should be 400, and is {found:g}: "
            "for how many pictures does the one price become the other?"
        )
    for dollars_an_hour, dollars_a_second, seconds_each, wanted in ((1.2, 0.001, 3.0, 400), (0.9, 0.0003, 2.0, 1500)):
        found = returned(break_even(dollars_an_hour, dollars_a_second, seconds_each))
        if abs(found - wanted) > 1e-6:
            raise Wrong(
                f"at ${dollars_an_hour} an hour, ${dollars_a_second} a second and {seconds_each:g} s a picture it "
                f"should be {wanted}, and is {found:g}: all three numbers count"
            )
    return "below so many pictures in an hour, paying by the second is cheaper; above, a GPU of your own is."


@register(NOTEBOOK, _test_break_even)
def break_even(dollars_an_hour, dollars_a_second, seconds_each):
    """Pictures an hour at which a GPU rented by the hour costs as much as one paid only for the seconds it works."""
    return dollars_an_hour / (dollars_a_second * seconds_each)
