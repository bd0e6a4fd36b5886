from common.errors import LISTED, unknown_name


def test_an_unknown_name_among_thousands_is_answered_by_some_that_are_similar():
    known = [f"vit_{number}" for number in range(5000)] + ["resnet18"]
    assert unknown_name("model", "resnet81", known).message == 'unknown model "resnet81": did you mean "resnet18"?'
    for name in ("virtual", "ßß"):
        message = unknown_name("model", name, known).message
        assert "choose one of 5,001, such as " in message
        assert len(message) < 150
    few = [str(number) for number in range(LISTED)]
    assert unknown_name("model", "x", few).message.endswith(", ".join(sorted(few)))
