"""Many runs from one file: started side by side, resumed, and compared in one table."""
