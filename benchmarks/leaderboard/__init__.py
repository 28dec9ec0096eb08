"""The scoreboard: every method on features of a pretrained tower, and in a host that answers.

`python -m benchmarks.leaderboard add METHOD` measures what the committed rows lack of a method,
`all` of every method and control; `page` makes `docs/leaderboard.md` of the rows.

Data: `fetch` gets packages, `onnx_weights` and `tower` the tower, `tiles` labeled aerial imagery,
`composite` questions about drawn shapes over it. Measuring: `kept` the board of features, `host`,
`train_host` and `answers` the board of answers, `controls` what no method is in. Reporting: `rows`,
`intervals`, `page`, `pictures`. `run` is the command.
"""
