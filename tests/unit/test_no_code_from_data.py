"""Nothing that is read may run: no pickle in any guise, no code from text, no shell."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "controller").rglob("*.py"))
MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "shelve",
    "marshal",
    "joblib.numpy",
}
CALLS = {
    "eval",
    "exec",
    "joblib.load",
    "joblib.dump",
    "yaml.load",
    "yaml.load_all",
    "yaml.unsafe_load",
    "yaml.full_load",
    "os.system",
    "os.popen",
    "np.fromfile",
}


def findings(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name in MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            found.append(node.module)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            keywords = {key.arg: key.value for key in node.keywords}
            if called in CALLS:
                found.append(called)
            for word in ("shell", "allow_pickle"):
                if isinstance(value := keywords.get(word), ast.Constant) and value.value:
                    found.append(f"{called}({word}=True)")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_runs_what_it_reads(path):
    assert findings(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from dill import loads",
        "joblib.load(path)",
        "yaml.load(text)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(text, shell=True)",
        "eval(text)",
    ],
)
def test_what_could_run_is_found(source):
    assert len(findings(source)) == 1
