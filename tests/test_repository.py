"""What holds for the repository as a whole: layers, light imports, documentation, one list of versions."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bitgen.config import Config, load_preset, preset_names

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "bitgen").glob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
            if not line.startswith("#"))

# A module imports only what stands before it. Where a new one belongs is a decision: it is written down here.
ORDER = """
    config ranges bitlinear losses retrieval projection
    drawing figures feature_figures network_figures data_figures page arguments
    images scene_words scenes transformer memory memory_figures
    lean vision text generation fusion tokenizer
    folders listing parquet webdataset annotations formats cache streamed dataset
    processing cooccurrence negatives data prepare
    model
    matching
    chunked processes objective leak lock checkpoint projector hover logs exits precision
    signs checks health
    accounting encoded candidates evaluate markdown facts record card
    repository upload outbox push
    optimizer diagnostics attention grounding geometry probes slots mistakes
    randomness strict_json admission wire download hub
    catalogue engine store gallery query indexing index export index_commands
    boards batches validation journal signals setup snapshot saving trainer
    case report data_commands hub_commands run_commands cli __main__
""".split()

# What takes seconds to import, or belongs to an extra, is imported by the function that needs it.
HEAVY = {"gradio", "matplotlib", "umap", "pandas", "datasets", "pyarrow", "tensorboard", "torchvision", "faiss"}


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.AST) -> set[str]:
    """Dotted names that any import under `tree` asks for, inside functions too."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute here"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def at_import_time(tree: ast.Module) -> list[ast.stmt]:
    """The imports of a module outside its functions and `if TYPE_CHECKING`."""
    found, todo = [], list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found.append(node)
        for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if not isinstance(node, ast.FunctionDef) and not for_types:
            todo += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
    return found


# Layers and imports -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [path for path in MODULES if path.stem != "__init__"], ids=lambda path: path.stem)
def test_imports_point_down(path):
    assert path.stem in ORDER, f"bitgen/{path.name} is new: give it its place in ORDER, after all that it imports"
    for name in imported(parsed(path)):
        package, module, *_ = [*name.split("."), ""]
        if package != "bitgen":
            continue
        assert module in ORDER, f"bitgen/{path.name} imports {name}: name the module that defines it"
        assert ORDER.index(module) < ORDER.index(path.stem), f"bitgen/{path.name} imports {module}, which is above it"


def test_the_order_names_no_module_that_is_gone():
    assert set(ORDER) == {path.stem for path in MODULES} - {"__init__"} and len(set(ORDER)) == len(ORDER)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_heavy_packages_are_imported_where_they_are_used(path):
    everywhere = {name.split(".")[0] for name in imported(parsed(path))}
    at_once = {name.split(".")[0] for node in at_import_time(parsed(path)) for name in imported(node)}
    assert not at_once & HEAVY
    assert "torchvision" not in everywhere, "torchvision is no dependency"


def loaded_by(statement: str) -> set[str]:
    """Top-level packages in a fresh interpreter after `statement`."""
    code = f"{statement}; import sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_bitgen_loads_next_to_nothing():
    assert not loaded_by("import bitgen") & (HEAVY | {"torch", "transformers", "numpy", "PIL", "accelerate"})


def test_all_modules_together_load_nothing_heavy():
    modules = ", ".join(f"bitgen.{name}" for name in ORDER if name != "__main__")
    assert not loaded_by(f"import {modules}") & HEAVY


def test_the_public_names_exist():
    import bitgen

    for name in bitgen.__all__:
        assert getattr(bitgen, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        bitgen.no_such_name  # noqa: B018


# Documentation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_everything_public_has_a_docstring(path):
    tree = parsed(path)
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    functions = [node for owner in [tree, *classes] for node in owner.body if isinstance(node, ast.FunctionDef)]
    bare = [f"{node.name} (line {node.lineno})" for node in classes + functions
            if not node.name.startswith("_") and not ast.get_docstring(node)]
    assert not bare and ast.get_docstring(tree), f"bitgen/{path.name}: no docstring: {', '.join(bare) or 'the module'}"


def test_every_setting_is_documented():
    """The help text of a setting is the string below it; a section's is the docstring of its class."""
    bare = []
    for section in (node for node in parsed(ROOT / "bitgen/config.py").body if isinstance(node, ast.ClassDef)):
        for node, below in zip(section.body, section.body[1:] + [None]):
            if isinstance(node, ast.AnnAssign) and not ast.unparse(node.annotation).endswith("Config"):
                if not (isinstance(below, ast.Expr) and isinstance(getattr(below.value, "value", None), str)):
                    bare.append(f"{section.name}.{node.target.id}")
    assert not bare


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_whole(name):
    assert isinstance(load_preset(name), Config)


# Packaging --------------------------------------------------------------------------------------------------


def test_conda_users_get_what_make_test_installs():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python, pip, arguments = environment["dependencies"]
    lines = arguments["pip"]
    wanted = Requirement(f"python{PROJECT['requires-python']}")
    assert pip == "pip" and wanted.specifier.contains(python.removeprefix("python=")) and len(lines) == 2
    assert lines[0] == "-c constraints.txt"
    extras = re.fullmatch(r"-e \.\[(.+)\]", lines[1])[1]
    assert set(extras.split(",")) <= set(EXTRAS)
    assert f"test: $(VENV)/with-{extras} " in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_every_requirement_is_pinned():
    pins = {canonicalize_name(name): version for name, version in PINS.items()}
    for requirement in map(Requirement, PROJECT["dependencies"] + sum(EXTRAS.values(), [])):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement
    assert all(re.fullmatch(r"[\w.]+", version) for version in pins.values()), "a local version such as +cpu"
    assert "torchvision" not in pins


def test_what_is_missing_is_installed_as_an_extra():
    """In one way: by the name of ours that brings it."""
    named = [(path.name, said) for folder in ("bitgen", "app") for path in (ROOT / folder).rglob("*.py")
             for said in re.findall(r"pip install \S+", path.read_text(encoding="utf-8"))]
    wrong = [each for each in named if not (found := re.match(r"pip install '(bitgen|gradio)\[([a-z,]+)\]'", each[1]))
             or found[1] == "bitgen" and not set(found[2].split(",")) <= set(EXTRAS)]
    assert named and not wrong


def test_a_space_installs_what_the_project_needs():
    """A Space brings gradio; the rest it is told in a file of its own."""
    lines = (ROOT / "app" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not line.startswith("#")] == [*PROJECT["dependencies"], *EXTRAS["index"]]


def test_what_the_requirements_require_is_pinned_too():
    """As far as it is installed here: the closure over the metadata of the installed packages."""
    pins, seen = {canonicalize_name(name) for name in PINS}, set()
    todo = [Requirement(line) for line in PROJECT["dependencies"] + sum(EXTRAS.values(), [])]
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        try:
            below = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        if (key := (name, *sorted(requirement.extras))) in seen:
            continue
        seen.add(key)
        # A GPU build of torch brings its driver packages, which only that build needs.
        assert name in pins or name.startswith(("nvidia-", "cuda-")) or name == "triton", f"{name} is not pinned"
        todo += [r for r in map(Requirement, below)
                 if not r.marker or any(r.marker.evaluate({"extra": extra}) for extra in ["", *requirement.extras])]


def test_the_makefile_has_what_is_written_about_it():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    assert targets >= {"demo", "test", "tensorboard", "lab", "bench", "lint", "clean"}
    for page in ROOT.glob("*.md"):
        asked = set(re.findall(r"(?:^\s*|[`;&] ?)make ([a-z]+)", page.read_text(encoding="utf-8"), re.M))
        assert asked <= targets, f"{page.name} speaks of make {asked - targets}"
    assert (ROOT / ".ci/run").stat().st_mode & 0o111 and "make test" in (ROOT / ".ci/run").read_text()


# Everything that is tracked ---------------------------------------------------------------------------------

FOREIGN = {
    "a path of one computer": r"(?<![\w.~$}/-])/(?:home|root|Users|work|mnt)/\w",
    "a note that belongs elsewhere": r"(?i)\b(?:issue|trap|ticket) ?#?\d+\b|fault[- ]plan|\b(?:design|traps)\.md\b",
    "something left open": r"\b(?:TODO|FIXME|XXX)\b",
}


def tracked() -> list[Path]:
    try:
        listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listing.split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.parametrize("what", FOREIGN)
def test_tracked_files_speak_of_the_project_alone(what):
    found = []
    for path in set(tracked()) - {Path(__file__)}:
        text = path.read_bytes().decode("utf-8", errors="ignore")
        if path.suffix in {".py", ".md", ".toml", ".txt", ".yml", ".yaml", ".ipynb", ""}:
            found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in re.finditer(FOREIGN[what], text)]
    assert not found, f"{what}: {found}"


def test_no_large_file_is_tracked():
    assert not [path.name for path in tracked() if path.stat().st_size > 1_500_000]
