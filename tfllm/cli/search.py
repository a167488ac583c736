"""`tfllm search`: the texts of a file that are nearest in meaning to a question."""

from argparse import ArgumentParser

from tfllm.core.errors import UserError
from tfllm.core.files import sha256
from tfllm.core.quiet import load_tensorflow


def search_command(parser: ArgumentParser, argv: list[str]) -> int:
    """Prints cosine, place and text of the nearest texts.

    The vectors of a file's texts are kept in the cache, by what they depend on.
    """
    parser.add_argument("model", help="run, directory or preset of an encoder")
    parser.add_argument("file", help="texts: a line each, a table or JSON lines")
    parser.add_argument("query", nargs="+", help="what to look for")
    parser.add_argument("--top_k", type=int, default=5, help="texts shown (default 5)")
    parser.add_argument("--text_column")
    options = parser.parse_args(argv)
    if options.top_k < 1:
        raise UserError(f"--top_k {options.top_k}: at least 1 is shown")
    from tfllm.data.readers import read

    rows = read(options.file, labels=False, text_column=options.text_column).rows
    load_tensorflow()
    from tfllm.data.cache import cached_arrays
    from tfllm.evaluation.retrieval import nearest
    from tfllm.models.weights import weights_of
    from tfllm.tasks.embeddings import open_embedder

    task, model = open_embedder(options.model)
    texts = list(dict.fromkeys(row["text"] for row in rows))
    weights = weights_of(model)
    key = {
        "vectors": [sha256(weights[name].tobytes()) for name in sorted(weights)],
        "tokenizer": task.tokenizer.fingerprint,
        "task": task.to_config(),
        "texts": sha256("\0".join(texts)),
    }

    def write(writer) -> None:
        writer.append("vectors", task.embed(model, texts))

    asked = task.embed(model, options.query)
    for query, vector in zip(options.query, asked, strict=True):
        if not vector.any():
            raise UserError(f"the model knows no word of '{query}'")
    vectors = cached_arrays(key, write)["vectors"]
    found = nearest(asked, vectors, options.top_k)
    places = {}
    for row in rows:
        places.setdefault(row["text"], f"{row['file']}:{row['line']}")
    for query, numbers, cosines in zip(options.query, *found, strict=True):
        if len(options.query) > 1:
            print(query)
        for number, cosine in zip(numbers, cosines, strict=True):
            text = texts[number]
            print(f"{cosine:.4f}\t{places[text]}\t{' '.join(text.split())}")
    return 0
