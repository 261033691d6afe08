import pytest

pytest.register_assert_rewrite("sources.cut_runs")
