"""docs/troubleshooting.md has an entry for every error that our code can raise and every code that it gives."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache

from airflow_provider_openai_batches.jobs import classify

from .pages import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
PACKAGE = ROOT / "airflow_provider_openai_batches"
ENTRIES = {
    name for row in re.findall(r"^\| (.*?)(?<!\\) \|.*$", PAGE, re.MULTILINE) for name in re.findall(r"`(.+?)`", row)
}
"""What stands in the first column of a table."""

NOT_OURS_TO_EXPLAIN = {
    "ApiError": "the emulator's answer to a bad call: the client turns it into one of those on the page",
    "Stopping": "the emulator's, to itself, when it stops",
    "SchemaError": "the emulator's, of a schema it cannot make an answer for: it is the answer's text",
}

CODE = re.compile(r"[a-z]+(_[a-z]+)*")


@cache
def trees(folder: str = "") -> list[ast.Module]:
    return [ast.parse(path.read_text(), str(path)) for path in (PACKAGE / folder).rglob("*.py")]


@cache
def errors() -> set[str]:
    """All exceptions of the package, by name: a class is one if it is called so."""
    classes = [node for tree in trees() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    bases = {node.name: [ast.unparse(base).rpartition(".")[2] for base in node.bases] for node in classes}

    known = {"Exception", "ValueError", "RuntimeError"}
    while more := {name for name, above in bases.items() if name not in known and known & set(above)}:
        known |= more
    return {name for name in known & set(bases) if not name.startswith("_")}


def constants(node: ast.AST) -> Iterator[str]:
    """The texts in an expression that could be codes; not what its calls are given."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and CODE.fullmatch(node.value):
        yield node.value
    for each in ast.iter_child_nodes(node) if not isinstance(node, ast.Call) else ():
        yield from constants(each)


def row_codes() -> set[str]:
    """Codes that `jobs/` writes into result rows: first argument of what makes a failure, or assigned to `code`."""
    found = set(classify.NEEDS_A_PERSON | classify._RETRYABLE_FAILURES)
    for tree in trees("jobs"):
        for node in ast.walk(tree):
            match node:
                case ast.Call(func=ast.Name("RowFailure" | "Refusal" | "error"), args=[code, *_]):
                    found |= set(constants(code))
                case ast.Assign(targets=[ast.Name("code")], value=value):
                    found |= set(constants(value))
                case ast.Assign(targets=[ast.Tuple(names)], value=ast.Tuple(values)):
                    pairs = zip(names, values, strict=True)
                    found |= {c for n, v in pairs if isinstance(n, ast.Name) and n.id == "code" for c in constants(v)}
                case ast.Compare(left=ast.Name("code"), comparators=[compared]):
                    found |= set(constants(compared))
    return found


def page_codes() -> set[str]:
    """Codes that the page in Airflow answers with."""
    found = set()
    for tree in trees("plugin"):
        for node in ast.walk(tree):
            match node:
                case ast.Call(func=ast.Name("PageError" | "_answer"), args=[_, code, *_]):
                    found |= set(constants(code))
                case ast.Assign(targets=[ast.Name("_CODES")], value=value):
                    found |= set(constants(value))
                case ast.AnnAssign(target=ast.Name("_KINDS"), value=value):
                    found |= set(constants(value))
                case ast.Assign(targets=[ast.Name("code")], value=value):
                    found |= set(constants(value))
    return found


def class_codes() -> set[str]:
    """Codes that an error class always has."""
    return {
        code
        for tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for line in node.body
        if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == "code"
        for code in constants(line.value)
    }


def test_what_is_looked_for_is_found() -> None:
    """Else the tests below hold nothing."""
    assert {"BatchFailedError", "LedgerError", "RowError", "WebhookStaleError", "FaultError"} <= errors()
    assert {"truncated", "refusal", "missing", "batch_expired", "request_failed", "refused"} <= row_codes()
    assert {"cross_site", "service_down", "unauthenticated", "defect", "no_connection"} <= page_codes()
    assert {"bad_signature", "token_limit_exceeded"} <= class_codes()


def test_every_error_has_an_entry() -> None:
    known = errors()
    assert set(NOT_OURS_TO_EXPLAIN) <= known
    # That of the page is explained above the table of its codes.
    assert not known - ENTRIES - set(NOT_OURS_TO_EXPLAIN) - {"PageError"}
    assert "`PageError`" in PAGE


def test_every_code_of_a_row_has_an_entry() -> None:
    assert not row_codes() - ENTRIES


def test_every_code_of_an_error_has_an_entry() -> None:
    # Some stand beside their error, in the second column.
    assert not {code for code in class_codes() if f"`{code}`" not in PAGE}


def test_every_code_of_the_page_has_an_entry() -> None:
    assert not {code for code in page_codes() if f"`{code}`" not in PAGE}


def test_every_code_of_a_refused_batch_has_an_entry() -> None:
    """As far as the emulator knows them, which follows OpenAI's documentation."""
    source = (PACKAGE / "emulator" / "validation.py").read_text()
    found = {
        code
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("_Problem", "_whole")
        for code in constants(node.args[0])
    }
    assert len(found) > 8
    assert not found - ENTRIES


def test_no_entry_is_for_an_error_that_is_gone() -> None:
    assert not {name for name in ENTRIES if name.endswith("Error")} - errors()


def test_the_table_of_rows_agrees_with_the_code() -> None:
    """Code and status, as in the table of `jobs/classify.py`."""
    said = dict(re.findall(r"^\| `(\w+)` \| `(\w+)` \|", PAGE, re.MULTILINE))
    table = re.findall(r"`(\w+)`\s+`(\w+)`", classify.__doc__ or "")
    pairs = [(code, status) for status, code in table if status in {each.value for each in classify.RowStatus}]
    assert len(pairs) > 6
    assert {code: said.get(code) for code, _ in pairs} == dict(pairs)
