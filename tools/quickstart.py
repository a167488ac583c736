"""From nothing to a served sentiment classifier, in one command.

    python3 tools/quickstart.py
    python3 tools/quickstart.py "房间很小，但是老板很热情"

Makes .venv, installs tfllm, trains on real Chinese reviews, measures, exports, asks the
export (in a process without TensorFlow's Python) about your sentence, and shows that a
training run that was killed ends with the same weights, bit for bit.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import environment

SENTENCE = "房间很干净，服务也周到，就是早餐太差了，下次不会再来。"
RUNS = Path("runs") / "quickstart"
NAME = "quickstart"
MINUTE = 60


def main() -> int:
    if any(argument in ("-h", "--help") for argument in sys.argv[1:]):
        print(__doc__)
        return 0
    python = environment.ensure("samples")
    if Path(sys.prefix).resolve() != python.parent.parent.resolve():
        # Go on inside the environment, where tfllm can be imported.
        command = [str(python), __file__, *sys.argv[1:]]
        return subprocess.run(command, cwd=environment.ROOT).returncode
    os.chdir(environment.ROOT)
    started = time.monotonic()
    sentence = " ".join(sys.argv[1:]) or SENTENCE
    shutil.rmtree(RUNS, ignore_errors=True)

    title("1. Train, measure, export")
    recipe = [sys.executable, "recipes/text_classification.py"]
    # Both runs below must compute alike, so nothing is left to a timing.
    recipe += ["--precision", "float32", "--jit_compile", "false"]
    whole = RUNS / "whole"
    command = [*recipe, "--output_dir", str(whole), "--export_name", NAME]
    if status := subprocess.run(command).returncode:
        return status

    title("2. The same again, killed on the way with SIGKILL, and resumed")
    killed = RUNS / "killed"
    command = [*recipe, "--output_dir", str(killed), "--no_export"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(command, **quiet)
    while process.poll() is None and not list(killed.glob("checkpoints/step-*")):
        time.sleep(0.05)
    time.sleep(0.7)  # some steps past its checkpoint, which must be done again
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = sorted(path.name for path in killed.glob("checkpoints/step-*"))
    print(f"killed (exit status {process.returncode}); it left {', '.join(found)}")
    if status := subprocess.run(command, **quiet).returncode:
        print(f"error: the resumed run ended with {status}; try: {' '.join(command)}")
        return status
    hashes = [weights_hash(run) for run in (whole, killed)]
    print(f"whole run          {hashes[0]}\nkilled and resumed {hashes[1]}")
    print("equal" if hashes[0] == hashes[1] else "NOT EQUAL")

    title("3. Ask the export, through TensorFlow's C API in another process")
    ask(Path("saved_models") / NAME, sentence)

    title("Next")
    minutes = (time.monotonic() - started) / MINUTE
    print(f"All of this took {minutes:.1f} minutes after the installation.\n")
    folder = (environment.ROOT / "saved_models").as_posix()
    print(f"""source .venv/bin/activate
tensorboard --logdir {RUNS}
docker run -p 8501:8501 -v {folder}:/models -e MODEL_NAME={NAME} \\
    tensorflow/serving:2.20.0
python recipes/text_classification.py --train_file YOURS.tsv --model textcnn""")
    return int(hashes[0] != hashes[1])


def title(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}", flush=True)


def weights_hash(run: Path) -> str:
    """SHA-256 over the last checkpoint's weights and the best one's."""
    checkpoints = run / "checkpoints"
    last = max(checkpoints.glob("step-*"))
    files = [last / "model.safetensors", last / "training.safetensors"]
    files.append(checkpoints / "best" / "model.safetensors")
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def ask(model: Path, sentence: str) -> None:
    from tfllm.core.console import console
    from tfllm.explain.occlusion import explain, render
    from tfllm.serving.c_api import Process

    with Process(model) as process:
        answer = process.run("serving_default", {"text": [sentence]})
        label, score = answer["label"][0], float(answer["score"][0])

        def probability(texts: list[str]) -> list[float]:
            found = process.run("serving_default", {"text": texts})
            rows = zip(found["labels"], found["scores"], strict=True)
            return [float(scores[list(labels).index(label)]) for labels, scores in rows]

        attribution = explain(sentence, probability)
        clean = "tensorflow" not in process.modules
    print(json.dumps({"label": label, "score": round(score, 4)}, ensure_ascii=False))
    console().print(render(attribution))
    shares = ", ".join(f"{unit} {share:+.0%}" for unit, share in attribution.top(5))
    print(f"green speaks for the answer, red against it: {shares}")
    print(f"TensorFlow's Python was {'not ' if clean else ''}imported in that process")


if __name__ == "__main__":
    sys.exit(main())
