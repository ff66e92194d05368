"""`cmdeployvpkg`: gives the package of a guest its application monitors."""
