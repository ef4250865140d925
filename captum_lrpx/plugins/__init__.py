"""The methods of this package inside of other libraries, each imported by its user only."""
