import pytest

from sparsify._src.conversion import processor


def test_it_says_the_model_and_nothing_that_changes():
    found = processor.described()
    assert any(found.values())
    assert not {"cpu MHz", "processor", "apicid"} & found.keys()
    assert processor.described() is found


def test_there_is_a_core_for_this_process():
    assert processor.cores() >= 1


@pytest.mark.parametrize("text", ["", "no colon here\n"])
def test_where_the_system_does_not_say_it_python_does(monkeypatch, text):
    processor.described.cache_clear()
    monkeypatch.setattr(processor.Path, "read_text", lambda self: text)
    assert processor.described().keys() == {"model name"}
    processor.described.cache_clear()
