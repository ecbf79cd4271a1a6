"""The report page of a run: made from the files of its run folder alone, as HTML, markdown and JSON."""
