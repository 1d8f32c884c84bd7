import json

import torch

from weightbank.evaluation import evaluate


def test_the_report_prints_a_table_and_dumps_as_json(task, law):
    report = evaluate(task, law, 6, ood=torch.zeros(30, 4))
    text = str(report)
    assert text.splitlines()[0].startswith("blobs: 101 examples")
    assert f"accuracy                  {report.accuracy.text}" in text
    assert report.draws["ece"].text in text
    assert "auroc mutual information" in text
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert plain["samples"] == 6
    assert plain["examples"] == 101
    assert len(plain["draws"]["accuracy"]["values"]) == 6
    assert plain["average"]["nll"]["mean"] == report.nll.mean
    single = str(evaluate(task, task.theta(), ood=torch.zeros(30, 4)))
    assert "one draw" in single
    assert "mutual information" not in single  # one draw disagrees with nobody


def test_one_example_has_no_temperature(task, law):
    report = evaluate(task, law, 3, data=(torch.zeros(1, 4), torch.tensor([1])))
    assert "calibrated_nll" not in report.average
    assert report.nll.stderr is None
