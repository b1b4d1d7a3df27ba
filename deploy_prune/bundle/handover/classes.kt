// What the outputs of $artifact say.

/** The number of the highest score of the first output: a place in labels.json, from 0 on. */
fun best(outputs: List<FloatArray>): Int {
    var found = 0
    for (i in outputs[0].indices) if (outputs[0][i] > outputs[0][found]) found = i
    return found
}
