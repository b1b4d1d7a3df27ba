// $artifact on Android: depend on com.google.ai.edge.litert:litert, put the file into assets/, not compressed.
import android.content.Context
import java.io.FileInputStream
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.channels.FileChannel
import org.tensorflow.lite.Interpreter

private const val CHANNELS = $channels
private const val HEIGHT = $height
private const val WIDTH = $width
private val MEAN = floatArrayOf($mean_f)
private val STD = floatArrayOf($std_f)

class Network(context: Context) : AutoCloseable {
    private val interpreter: Interpreter

    init {
        val asset = context.assets.openFd("$artifact")
        val file = FileInputStream(asset.fileDescriptor).channel
        val bytes = file.map(FileChannel.MapMode.READ_ONLY, asset.startOffset, asset.declaredLength)
        interpreter = Interpreter(bytes, Interpreter.Options().setNumThreads(1))
    }

    /**
     * Scores of one image, given as bytes [HEIGHT, WIDTH, CHANNELS], $colour. Compare with sample/expected_0.npy.
     * A photo must be upright: BitmapFactory leaves the EXIF orientation aside; lay transparency on white.
     */
    fun scores(image: ByteArray): FloatArray {
        val x = ByteBuffer.allocateDirect(4 * HEIGHT * WIDTH * CHANNELS).order(ByteOrder.nativeOrder())
        for (i in 0 until HEIGHT * WIDTH)
            for (c in 0 until CHANNELS) // the file's input is [1, HEIGHT, WIDTH, CHANNELS]
                x.putFloat(((image[i * CHANNELS + c].toInt() and 0xff) / 255f - MEAN[c]) / STD[c])
        x.rewind()
        val found = arrayOf(FloatArray($num_scores))
        interpreter.run(x, found)
        return found[0]
    }

    override fun close() = interpreter.close()
}
