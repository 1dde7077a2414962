"""Side-by-side measurements. README.md says how to run each; nothing here runs in the test suite."""
