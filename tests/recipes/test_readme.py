"""Every command of the README files is one that exists, with flags that exist."""

import re
import shlex
import subprocess
import sys
import time

import pytest

from tfllm.cli.main import COMMANDS


def commands(root, name):
    """The commands of a README's bash blocks."""
    text = (root / name).read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def test_both_languages_show_the_same_commands(root):
    english, chinese = (commands(root, f"README{x}.md") for x in ("", ".zh-CN"))
    assert english == chinese and len(english) > 10
    headings = [
        len(re.findall(r"^## ", (root / name).read_text("utf-8"), re.MULTILINE))
        for name in ("README.md", "README.zh-CN.md")
    ]
    assert headings[0] == headings[1]


def test_links_lead_somewhere(root):
    for page in [
        *root.glob("*.md"),
        *root.glob("docs/*.md"),
        *root.glob("*/README.md"),
    ]:
        for link in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_commands_parse(root, recipe, capsys):
    seen = set()
    pages = [f"docs/{page.name}" for page in root.glob("docs/*.md")]
    for line in [
        line for page in ["README.md", *pages] for line in commands(root, page)
    ]:
        words = shlex.split(line)
        if words[:1] == ["tfllm"]:
            assert words[1] in COMMANDS
            with pytest.raises(SystemExit) as end:
                from tfllm.cli import main

                main._run([words[1], "--help"])
            assert end.value.code == 0
            shown = capsys.readouterr().out
            assert all(flag in shown for flag in words if flag.startswith("--"))
        elif "recipes/" in line:
            name = re.search(r"recipes/(\w+)\.py", line)[1]
            flags = words[words.index(f"recipes/{name}.py") + 1 :]
            with pytest.raises(SystemExit) as end:
                recipe(name, *flags, "--print_config")
            assert end.value.code == 0
        elif "tools/" in line:
            script = next(word for word in words if word.startswith("tools/"))
            assert (root / script).exists()
        seen.add(words[0])
    assert {"tfllm", "python", "python3", "docker", "curl"} <= seen


def test_help_is_quick(root):
    """`tfllm --help` imports neither TensorFlow nor numpy."""
    code = (
        "import sys; from tfllm.cli.main import main; main(['--help']);"
        "print({'tensorflow', 'keras', 'numpy', 'rich'} & set(sys.modules))"
    )
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=root
        )
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.5
    assert done.stdout.strip().endswith("set()")
    for name in COMMANDS:
        assert name in done.stdout
