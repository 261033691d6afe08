import pytest

pytest.register_assert_rewrite("training.runs")
