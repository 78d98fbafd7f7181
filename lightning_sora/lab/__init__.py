"""What a person does with the package, as typed functions: no command line, no files of arguments."""
