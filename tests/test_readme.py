"""The README's Python runs as it stands, from the command line too."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_python_blocks_run_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {"__name__": "readme"}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), space)
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+) nats", capsys.readouterr().out)]
    assert len(losses) == 5
    assert losses[-1] < losses[0] - 2
    assert (tmp_path / "samples.png").stat().st_size > 1_000


def test_recipe_of_the_readme_trains_from_the_command_line(tmp_path: Path) -> None:
    first, _, third, *_ = blocks("python")
    (tmp_path / "my_model.py").write_text("\n".join([first, "from ppgen import ELBO", third]))
    assert "my_model.py:recipe" in README.read_text()
    command = [sys.executable, "-m", "ppgen", "train", "my_model.py:recipe", "--steps", "30", "--out", "run", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(README.parent)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '"nll"' in done.stdout
    assert (tmp_path / "run" / "samples.png").exists()


def test_every_command_of_the_readme_exists() -> None:
    from ppgen.cli import commands

    named = {line.split()[1] for block in blocks("sh") for line in block.splitlines() if line.startswith("ppgen ")}
    assert named >= {"train", "resume", "evaluate", "sample", "list", "show"}
    assert named <= set(commands.commands)
