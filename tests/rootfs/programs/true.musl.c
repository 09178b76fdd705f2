/* The smallest program that start-up times are measured with. */
int main(void) { return 0; }
