"""
Code that is stored with a pipeline, for users of diffusers who have not installed this package.

All modules are joined into one file. With several files, diffusers would query the Hub for every file and every import
in it, about forty times, and would reuse files that it has imported from another repository.
"""

import ast
import json
from pathlib import Path

from .hub import BLOCKS, PIPELINE, SCHEDULER, stored_variant


HEAD = '''"""
Code of haze-pipeline that restores images, for `DiffusionPipeline.from_pretrained(…, trust_remote_code=True)`. The
package has the documentation and more functions: https://pypi.org/project/haze-pipeline
"""'''

# Mixins that restoration does not need: diffusers saves and loads pipelines, and other programs display
# images.
LEFT_OUT = {
    "pipeline_storage": "PipelineStorageMixin",
    "visualization": "VisualizationMixin",
    "notebook_display": "NotebookMixin",
}


def add_code(folder: str | Path):
    """
    Add code to a stored pipeline, so that `DiffusionPipeline` can load it without this package.

    Args:
        folder (`str` or `Path`): Folder that `save_pretrained` wrote.
    """
    folder, root = Path(folder), Path(__file__).parents[1]
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    (folder / f"{PIPELINE[0]}.py").write_text(join_modules(root, PIPELINE[0]), encoding="utf-8")
    index["_class_name"] = PIPELINE
    if index["scheduler"][1] == SCHEDULER[1]:
        code = (root / f"{SCHEDULER[0]}.py").read_text(encoding="utf-8")
        (folder / "scheduler" / f"{SCHEDULER[0]}.py").write_text(code, encoding="utf-8")
        index["scheduler"] = SCHEDULER
    (folder / "model_index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if index["unet"][0] == "diffusers" and index["scheduler"] == SCHEDULER:
        add_blocks(folder)


def add_blocks(folder: str | Path, repository: str | None = None):
    """
    Add modular blocks to a pipeline that was stored with its code, for `ModularPipeline`.

    Args:
        folder (`str` or `Path`): The folder.
        repository (`str`, *optional*): Repository of the Hub that it will become, where `ModularPipeline` finds the
            weights. Those in a local folder are found without it.
    """
    folder, root = Path(folder), Path(__file__).parents[1]
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    for module in (BLOCKS[0], SCHEDULER[0]):
        (folder / f"{module}.py").write_text((root / f"{module}.py").read_text(encoding="utf-8"), encoding="utf-8")
    where = {"pretrained_model_name_or_path": repository, "subfolder": "unet", "revision": None}
    version = {"_diffusers_version": index["_diffusers_version"]}
    of_scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    described = {
        "_class_name": "ModularPipeline",
        "_blocks_class_name": BLOCKS[1],
        "unet": [*index["unet"], {"type_hint": index["unet"], "variant": stored_variant(folder), **where}],
        "settings": {name: value for name, value in index.items() if name[0] != "_" and not _is_component(value)},
        "solver": {name: value for name, value in of_scheduler.items() if name[0] != "_"},
    }
    blocks = {"_class_name": BLOCKS[1], "auto_map": {"ModularPipelineBlocks": ".".join(BLOCKS)}}
    for name, content in (("modular_model_index", described), ("modular_config", blocks)):
        text = json.dumps(content | version, indent=2, sort_keys=True) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")


def _is_component(value) -> bool:
    """Whether a value of `model_index.json` is the library and the class of a component."""
    return isinstance(value, list) and len(value) == 2 and all(isinstance(each, str) for each in value)


def join_modules(root: Path, last: str, head: str = HEAD) -> str:
    """
    Join the module `last` of the package in `root`, and all modules of the package that it imports, into one file that
    starts with `head`. Only `last` keeps its docstrings.

    Raises:
        `ValueError`: If two modules use one name for different things.
    """
    joined, meanings = {}, {}

    def join(module: str):
        source = Path(root, *module.split(".")).with_suffix(".py").read_text(encoding="utf-8")
        tree = ast.parse(source)
        blank = [] if module == last else _docstrings(tree)
        for node in tree.body:
            own = _own_module(node, module)
            if own is not None and own not in joined and own not in LEFT_OUT:
                join(own)
            if own is not None or _is_for_types(node):
                blank.append(node)
            else:
                for name, meaning in _names(node, module).items():
                    if meanings.setdefault(name, meaning) != meaning:
                        raise ValueError(f"{name} is {meanings[name]} as well as {meaning}: rename one.")
        lines = source.splitlines()
        for node in blank:
            lines[node.lineno - 1 : node.end_lineno] = [None] * (node.end_lineno - node.lineno + 1)
        joined[module] = "\n".join(line for line in lines if line is not None).strip()

    join(last)
    code = "\n\n\n".join([head, *(f"# {module.replace('.', '/')}.py\n\n{code}" for module, code in joined.items())])
    for base in LEFT_OUT.values():
        code = code.replace(f"({base}, ", "(").replace(f"({base})", "")
    return code + "\n"


def _docstrings(tree: ast.Module) -> list[ast.stmt]:
    """Docstrings of a module and of its classes and functions whose body holds more than the docstring."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            if len(node.body) > 1:
                found.append(node.body[0])
    return found


def _is_for_types(node: ast.stmt) -> bool:
    """Whether a statement is `if TYPE_CHECKING:`."""
    return isinstance(node, ast.If) and getattr(node.test, "id", None) == "TYPE_CHECKING"


def _names(node: ast.stmt, module: str) -> dict[str, str]:
    """Names that a statement of a module defines or imports, with their origin."""
    if isinstance(node, ast.ImportFrom | ast.Import):
        origin = getattr(node, "module", "")
        return {alias.asname or alias.name: f"{origin}.{alias.name}" for alias in node.names}
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name: module}
    if isinstance(node, ast.Assign):
        return {target.id: module for target in node.targets if isinstance(target, ast.Name)}
    return {}


def _own_module(node: ast.stmt, importer: str) -> str | None:
    """
    Module of this package that a statement of the module `importer` imports from, such as `"sampling.tiling"`; `None`
    if there is none.
    """
    if not isinstance(node, ast.ImportFrom):
        return None
    if node.level == 1:
        return ".".join([*importer.split(".")[:-1], node.module])
    package, _, module = (node.module or "").partition(".")
    return module if package == "haze_pipeline" else None
