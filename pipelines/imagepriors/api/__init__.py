"""The functions and objects behind `import imagepriors`; each module imports torch and Ray only when it needs them."""
