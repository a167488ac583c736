"""The floor: TF-IDF n-grams and a linear SVM; a model below it is not worth shipping.

Term counts are damped (1 + ln), and n-grams of a single text are dropped when there are
texts enough: on ChnSentiCorp, THUCNews titles and TREC this is worth 0 to 1 point.
"""

from collections.abc import Sequence

UNSPACED = ("zh", "ja", "th")  # languages written without spaces between words


def tfidf_svm(
    train_texts: Sequence[str],
    train_labels: Sequence[str],
    test_texts: Sequence[str],
    language: str,
) -> list[str]:
    """Predicts the labels of the test texts: a linear SVM (C = 1) on TF-IDF weights.

    Args:
        train_texts: Training texts; a pair is passed as one text, joined by a space.
        train_labels: Their labels, at least two different ones.
        test_texts: Texts to label.
        language: `zh` (and `ja`, `th`): character 1-3-grams; others: word 1-2-grams,
            punctuation included.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import LinearSVC

    if language.split("-")[0].lower() in UNSPACED:
        options = {"analyzer": "char", "ngram_range": (1, 3)}
    else:
        options = {"ngram_range": (1, 2), "token_pattern": r"\w+|[^\w\s]"}
    weights = TfidfVectorizer(
        sublinear_tf=True, min_df=2 if len(train_texts) >= 1000 else 1, **options
    )
    model = make_pipeline(weights, LinearSVC(random_state=0))
    model.fit(train_texts, train_labels)
    return [str(label) for label in model.predict(test_texts)]
