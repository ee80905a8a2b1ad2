"""Messages to rows, rows to answers: sessions, turns and the pipeline that both share."""
