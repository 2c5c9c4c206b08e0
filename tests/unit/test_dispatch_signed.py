"""Messages to a dispatcher: only who has the key writes them, and none twice."""

import pytest

from controller.dispatch.signed import SignatureError, seal, unseal

KEY = b"0123456789abcdef"


def test_what_was_sealed_is_read():
    assert unseal(KEY, seal(KEY, 7, {"plan": None}), 6) == {"plan": None, "serial": 7}


def test_another_key_or_a_changed_word_is_refused():
    message = seal(KEY, 7, {"plan": "a"})
    for forged in (
        seal(b"another key of 16", 7, {"plan": "a"}),
        message.replace(b'"a"', b'"b"'),
        b"",
        b"\n",
        message.partition(b"\n")[2],
    ):
        with pytest.raises(SignatureError, match="not signed"):
            unseal(KEY, forged, 0)


@pytest.mark.parametrize("after", [7, 8])
def test_an_old_message_is_refused_and_the_answer_says_what_is_new(after):
    with pytest.raises(SignatureError, match=rf"older than the last one \({after}\)"):
        unseal(KEY, seal(KEY, 7, {}), after)


def test_a_serial_that_is_none_is_refused():
    import hashlib
    import hmac

    text = b'{"serial":"9"}'
    sealed = hmac.new(KEY, text, hashlib.sha256).hexdigest().encode() + b"\n" + text
    with pytest.raises(SignatureError, match="no serial"):
        unseal(KEY, sealed, 0)
