"""What a model is held against: another run, or TF-IDF n-grams and a linear SVM.

A model below that floor is not worth shipping. Term counts are damped (1 + ln), and
n-grams of a single text are dropped when there are texts enough: on ChnSentiCorp,
THUCNews titles and TREC this is worth 0 to 1 point.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from tfllm.core.errors import UserError

UNSPACED = ("zh", "ja", "th")  # languages written without spaces between words


def other_system(
    train: Sequence[dict],
    test: Sequence[dict],
    language: str,
    floor: bool = False,
    run: str | Path | None = None,
) -> tuple[str, list] | None:
    """Name and predictions of what a model is compared with, if anything.

    Args:
        train: Training rows with `text`, `text_pair` where there is one, and `label`.
        test: Test rows.
        language: See `tfidf_svm`.
        floor: Whether that is the SVM.
        run: A finished run that was measured on the same test rows.

    Raises:
        UserError: The run was measured on other rows, or not at all.
    """
    if run:
        return predictions_of(run, test)
    if not floor:
        return None
    seen, asked = (
        [" ".join(filter(None, (row["text"], row.get("text_pair")))) for row in rows]
        for rows in (train, test)
    )
    labels = [row["label"] for row in train]
    return "TF-IDF and linear SVM", tfidf_svm(seen, labels, asked, language)


def predictions_of(
    run: str | Path, test: Sequence[dict], keys=("text", "text_pair", "label")
) -> tuple[str, list]:
    """Name and predictions of a finished run.

    Args:
        run: Its directory.
        test: Test rows.
        keys: In which they are the rows that it was measured on.

    Raises:
        UserError: The run was measured on other rows, or not at all.
    """
    path = Path(run) / "eval" / "predictions.jsonl"
    try:
        with open(path, encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise UserError(f"cannot compare: {error}", path) from None
    if [[r.get(k) for k in keys] for r in rows] != [
        [r.get(k) for k in keys] for r in test
    ]:
        raise UserError(
            "cannot compare: that run was measured on other rows",
            path,
            "Give both runs the same --test_file",
        )
    return Path(run).name, [row["prediction"] for row in rows]


def tfidf_svm(
    train_texts: Sequence[str],
    train_labels: Sequence,
    test_texts: Sequence[str],
    language: str,
) -> list:
    """Predicts the labels of the test texts: a linear SVM (C = 1) on TF-IDF weights.

    One for each class where a text has a list of labels; a regression for numbers.

    Args:
        train_texts: Training texts; a pair is passed as one text, joined by a space.
        train_labels: Their labels, at least two different ones.
        test_texts: Texts to label.
        language: `zh` (and `ja`, `th`): character 1-3-grams; others: word 1-2-grams,
            punctuation included.
    """
    from sklearn.compose import TransformedTargetRegressor
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MultiLabelBinarizer, StandardScaler
    from sklearn.svm import LinearSVC, LinearSVR

    if language.split("-")[0].lower() in UNSPACED:
        options = {"analyzer": "char", "ngram_range": (1, 3)}
    else:
        options = {"ngram_range": (1, 2), "token_pattern": r"\w+|[^\w\s]"}
    weights = TfidfVectorizer(
        sublinear_tf=True, min_df=2 if len(train_texts) >= 1000 else 1, **options
    )
    if isinstance(train_labels[0], float):
        svm = LinearSVR(random_state=0)
        svm = TransformedTargetRegressor(svm, transformer=StandardScaler())
        model = make_pipeline(weights, svm).fit(train_texts, train_labels)
        return model.predict(test_texts).tolist()
    if isinstance(train_labels[0], list):
        names = MultiLabelBinarizer()
        labels = names.fit_transform(train_labels)
        svm = OneVsRestClassifier(LinearSVC(random_state=0))
        found = make_pipeline(weights, svm).fit(train_texts, labels).predict(test_texts)
        return [list(row) for row in names.inverse_transform(found)]
    model = make_pipeline(weights, LinearSVC(random_state=0))
    model.fit(train_texts, train_labels)
    return [str(label) for label in model.predict(test_texts)]
