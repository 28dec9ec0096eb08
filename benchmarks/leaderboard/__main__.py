"""`python -m benchmarks.leaderboard`."""

from benchmarks.leaderboard.run import main

main()
