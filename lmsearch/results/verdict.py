"""The verdict: what is best, and how sure that is."""

from lmsearch.results.confirmation import confirmation_sentence
from lmsearch.results.reading import Results
from lmsearch.results.trouble import why_nothing
from lmsearch.store.records import without_seed


def verdict(results: Results) -> list[str]:
    """Return what is best and how sure that is, a sentence each."""
    record, winner = results.record, results.winner
    if winner is None:
        nothing = why_nothing(record)
        if nothing is None:
            return [f"No trial of {results.name} is complete yet."]
        return [f"{nothing.what[:1].upper()}{nothing.what[1:]}.", *(f"{sentence}." for sentence in nothing.because)]
    parameters = f" ({winner.parameters:,} parameters)" if winner.parameters else ""
    sentences = [
        f"Trial {winner.number} (by {winner.by or 'another program'}) has the best validation perplexity, "
        f"{winner.perplexity:.2f} in epoch {winner.best_epoch}{parameters}."
    ]
    if winner.known_perplexity is not None:
        sentences[0] += f" Of the known words alone, without <unk>, it is {winner.known_perplexity:.2f}."
    if results.confirmation is None:
        rivals = sum(
            trial.outcome == "complete" and trial.perplexity < 1.01 * winner.perplexity for trial in record.trials
        )
        more = "One other trial is" if rivals == 2 else f"{rivals - 1} other trials are"
        close = f" {more} within 1 %." if rivals > 1 else ""
        sentences.append(f"That is one training with one seed, the luckiest of {record.count('complete')}.{close}")
        return sentences
    if results.confirmation.winner is not None:
        tied = results.confirmation.verdict == "tie"
        words = "has the best mean, but it is a tie" if tied else "is the confirmed winner"
        sentences = [f"Trial {winner.number}{parameters} {words}."]
    sentences.append(confirmation_sentence(results.confirmation))
    confirmed = {without_seed(leader.trial.params) for leader in results.confirmation.leaders}
    if record.best is not None and without_seed(record.best.params) not in confirmed and results.confirmation.winner:
        sentences.append(
            f"Since then trial {record.best.number} reached {record.best.perplexity:.2f} in the search; "
            "it has not been confirmed."
        )
    return sentences
