// What the outputs of $artifact say: a class for each pixel.
import kotlin.math.floor
import kotlin.math.max
import kotlin.math.min

const val CLASSES = $map_classes
const val MAP_HEIGHT = $map_height
const val MAP_WIDTH = $map_width
const val UNSEEN = $unseen

/** A place between two of a map, each with its share. */
class Between(val first: Int, val second: Int, val firstShare: Float, val secondShare: Float)

/** Of a pixel's centre, of large, on a map with small places; beyond the outermost centres it is the outermost. */
fun between(pixel: Int, small: Int, large: Int): Between {
    val at = max(0.0, min((pixel + 0.5) * small / large - 0.5, (small - 1).toDouble()))
    val first = at.toInt()
    return Between(first, min(first + 1, small - 1), (1 - (at - first)).toFloat(), (at - first).toFloat())
}

/** Of each pixel of the network's input the class with the highest logit. */
fun classesOfInput(outputs: List<FloatArray>): ByteArray {
    val map = outputs[0] // [CLASSES, MAP_HEIGHT, MAP_WIDTH]
    val found = ByteArray(PIXELS)
    for (y in 0 until HEIGHT) {
        val down = between(y, MAP_HEIGHT, HEIGHT)
        for (x in 0 until WIDTH) {
            val across = between(x, MAP_WIDTH, WIDTH)
            var highest = 0f
            for (c in 0 until CLASSES) {
                val above = (c * MAP_HEIGHT + down.first) * MAP_WIDTH
                val below = (c * MAP_HEIGHT + down.second) * MAP_WIDTH
                val left = down.firstShare * map[above + across.first] + down.secondShare * map[below + across.first]
                val right = down.firstShare * map[above + across.second] + down.secondShare * map[below + across.second]
                val logit = across.firstShare * left + across.secondShare * right
                if (c == 0 || logit > highest) {
                    highest = logit
                    found[y * WIDTH + x] = c.toByte()
                }
            }
        }
    }
    return found
}

/**
 * Of each pixel of a picture [height, width] its class's place in labels.json, from 0 on; UNSEEN where the network
 * doesn't see the pixel. Bytes are signed here: take `toInt() and 0xff`.
 */
fun classes(outputs: List<FloatArray>, height: Int, width: Int): ByteArray {
    val ofInput = classesOfInput(outputs)
    val m = mapping(height, width)
    val found = ByteArray(height * width) { UNSEEN.toByte() }
    for (y in 0 until height) {
        val inY = floor((y + 0.5) * m.scaleY + m.shiftY).toInt()
        for (x in 0 until width) {
            val inX = floor((x + 0.5) * m.scaleX + m.shiftX).toInt()
            val seen = inY >= 0 && inY < HEIGHT && inX >= 0 && inX < WIDTH
            if (seen) found[y * width + x] = ofInput[inY * WIDTH + inX]
        }
    }
    return found
}
