"""Laws of Markdown tables: a line a row, a bar a column."""

from fedwinnow.simulations.studies.markdown import markdown_table


def test_table_has_a_line_for_each_row_and_one_space_beside_each_cell():
    """Header, rule and rows; an empty cell takes a single space."""
    assert markdown_table(["", "a"], [["x", "1"], ["y", ""]]) == (
        "| | a |\n| --- | --- |\n| x | 1 |\n| y | |"
    )


def test_table_without_rows_is_its_header():
    """Nothing to list leaves header and rule."""
    assert markdown_table(["a"], []) == "| a |\n| --- |"
