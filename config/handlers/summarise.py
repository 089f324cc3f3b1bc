"""Summarise every CSV file that is uploaded: rows, columns, and minimum, maximum and mean of the columns that hold numbers.

Bind it in eventd.toml, create the folder, and copy a CSV file into it:

    [triggers.uploads]
    type = "directory"
    path = "/srv/uploads"
    include = ["*.csv"]
    function = "summarise"

The summary is the function's result: see it with `eventd runs`, or send it on with `on_success`. Needs the standard library only,
and reads a file line by line, so the size of the file does not matter.
"""

import csv
import math
import os


class Column:
    def __init__(self, name):
        self.name, self.count, self.total, self.numeric = name, 0, 0.0, True
        self.low, self.high = math.inf, -math.inf

    def add(self, text):
        text = text.strip()
        if not text or not self.numeric:
            return
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            self.numeric = False
            return
        self.count += 1
        self.total += number
        self.low, self.high = min(self.low, number), max(self.high, number)

    def summary(self):
        if not self.numeric or not self.count:
            return {"name": self.name, "type": "text"}
        return {"name": self.name, "type": "number", "min": self.low, "max": self.high, "mean": round(self.total / self.count, 6)}


def summarise(path):
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
        first = file.readline()
        file.seek(0)
        delimiter = max(",;\t|", key=first.count)
        rows = csv.reader(file, delimiter=delimiter)
        columns = [Column(name.strip()) for name in next(rows, [])]
        count = 0
        for row in rows:
            if not row:
                continue
            count += 1
            for column, text in zip(columns, row):
                column.add(text)
    return {"rows": count, "columns": [column.summary() for column in columns]}


def handler(event, context):
    files = []
    for record in event["Records"]:
        path = record["eventd"]["path"]
        # A name may hold bytes that are no text; they must not stop the printing.
        name = os.fsencode(os.path.basename(path)).decode("utf-8", "replace")
        result = {"file": name, **summarise(path)}
        print(f"{name}: {result['rows']} rows, {len(result['columns'])} columns")
        files.append(result)
    return {"files": files}
